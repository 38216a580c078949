"""What is sent to servers of the OpenAI API, and what their answers mean.

Events are as vLLM 0.32 sends them, unless a test says otherwise.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from polyphase.v1 import inference_pb2

from backends.engines.dialect import Delta, Tokens
from backends.engines.failures import PhaseError, error_body, refusal
from backends.engines.llama_cpp import LlamaCppDialect
from backends.engines.openai import OpenAIDialect, OpenAIWords, check_options
from router.errors import Reason
from router.model import FinishReason

TEXT = inference_pb2.GenerateRequest(model="m", text="hello", max_new_tokens=9)
PROMPT = "the prompt itself"


def _ids() -> inference_pb2.GenerateRequest:
    request = inference_pb2.GenerateRequest(model="m", max_new_tokens=9)
    request.tokens.ids.extend([5, 6])
    return request


def _event(**fields: Any) -> str:
    return json.dumps(fields)


def _choice(**fields: Any) -> str:
    return _event(choices=[{"index": 0, **fields}])


# --- asking ---


def test_a_plain_request_uses_nothing_beyond_the_api() -> None:
    """A hosted service refuses fields it does not know."""
    ask = OpenAIDialect(OpenAIWords()).ask(TEXT)
    assert ask.path == "/v1/completions"
    assert ask.body == {
        "model": "m",
        "prompt": "hello",
        "max_tokens": 9,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_ids_go_to_a_server_that_takes_them() -> None:
    """And the ids of its tokens are asked for."""
    ask = OpenAIDialect(OpenAIWords(token_ids=True)).ask(_ids())
    assert ask.body["prompt"] == [5, 6]
    assert ask.body["return_token_ids"] is True


@pytest.mark.parametrize("words", [OpenAIWords(), OpenAIWords(api="chat", token_ids=True)])
def test_ids_are_refused_where_only_text_is_taken(words: OpenAIWords) -> None:
    """Another backend may take them, so the failure can be retried."""
    with pytest.raises(PhaseError) as caught:
        OpenAIDialect(words).ask(_ids())
    assert caught.value.reason is Reason.INVALID_REQUEST
    assert caught.value.retryable


def test_a_chat_has_one_message() -> None:
    """The prompt is the user's."""
    words = OpenAIWords(api="chat", model="upstream", usage=False, max_tokens_field="max_completion_tokens")
    ask = OpenAIDialect(words).ask(TEXT)
    assert ask.path == "/v1/chat/completions"
    assert ask.body == {
        "model": "upstream",
        "messages": [{"role": "user", "content": "hello"}],
        "max_completion_tokens": 9,
        "stream": True,
    }


def test_sampling_is_passed_on_as_far_as_it_is_set() -> None:
    """A temperature of 0 is a wish, an absent one is not; 0.7 stays 0.7."""
    request = inference_pb2.GenerateRequest()
    request.CopyFrom(TEXT)
    request.sampling.temperature = 0.0
    request.sampling.top_p = 0.7
    request.sampling.top_k = 4
    request.sampling.seed = 11
    request.sampling.min_new_tokens = 2
    request.sampling.stop.extend(["\n"])
    request.sampling.ignore_eos = True
    body = OpenAIDialect(OpenAIWords()).ask(request).body
    wanted = {
        "temperature": 0.0,
        "top_p": 0.7,
        "top_k": 4,
        "seed": 11,
        "min_tokens": 2,
        "stop": ["\n"],
        "ignore_eos": True,
    }
    assert wanted.items() <= body.items()


def test_options_pass_by_name_only() -> None:
    """A client cannot set what the router sets, or what the operator does not allow."""
    request = inference_pb2.GenerateRequest()
    request.CopyFrom(TEXT)
    request.engine_options["cache_salt"] = "tenant-7"
    request.engine_options["logit_bias"] = '{"7": -100}'
    dialect = OpenAIDialect(OpenAIWords(pass_options=("cache_salt", "logit_bias")))
    body = dialect.ask(request).body
    assert (body["cache_salt"], body["logit_bias"]) == ("tenant-7", {"7": -100})
    with pytest.raises(PhaseError, match="pass_options"):
        OpenAIDialect(OpenAIWords(pass_options=("cache_salt",))).ask(request)
    assert check_options(("cache_salt",)) == ""
    for name in ("kv_transfer_params", "model", "stream", "n"):
        assert name in check_options(("cache_salt", name))


# --- reading ---

COMPLETIONS = OpenAIDialect(OpenAIWords(token_ids=True))
CHAT = OpenAIDialect(OpenAIWords(api="chat"))


def test_the_events_of_a_completion() -> None:
    """Text with ids, the end, the usage, and the mark after it."""
    first = _choice(text=" a", token_ids=[7], finish_reason=None, prompt_token_ids=[5, 6])
    last = _choice(text=" b", token_ids=[8, 9], finish_reason="length")
    counts = {"prompt_tokens": 6, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 4}}
    assert COMPLETIONS.delta(first) == Delta(" a", (7,))
    assert COMPLETIONS.delta(last) == Delta(" b", (8, 9), FinishReason.LENGTH)
    assert COMPLETIONS.delta(_event(choices=[], usage=counts)) == Delta(tokens=Tokens(6, 3, 4))
    assert COMPLETIONS.delta("[DONE]") == Delta(is_last=True)


def test_the_events_of_a_chat() -> None:
    """The role comes first and is no token; null counts as nothing."""
    assert CHAT.delta(_choice(delta={"role": "assistant", "content": ""}, finish_reason=None)) == Delta()
    assert CHAT.delta(_choice(delta={"content": "hi"})) == Delta("hi")
    end = _choice(delta={"content": None}, finish_reason="stop")
    assert CHAT.delta(end) == Delta(finish=FinishReason.STOP)
    assert CHAT.delta(_choice(delta=None, finish_reason="content_filter")).finish is FinishReason.STOP


NONSENSE = [
    "no json",
    "[1]",
    '{"choices": {"a": 1}}',
    '{"choices": [{}, {}]}',
    '{"choices": ["x"]}',
    '{"choices": [{"text": 7}]}',
    '{"choices": [{"text": "a", "token_ids": [-1]}]}',
    '{"choices": [{"text": "a", "token_ids": [true]}]}',
    '{"choices": [{"text": "a", "token_ids": [4294967296]}]}',
    '{"choices": [{"text": "a", "token_ids": "7"}]}',
    '{"choices": [{"finish_reason": 7}]}',
    '{"choices": [], "usage": {"completion_tokens": -1}}',
    '{"choices": [], "usage": [1]}',
    "[" * 100_000,
]


@pytest.mark.parametrize("data", NONSENSE, ids=range(len(NONSENSE)))
def test_nonsense_breaks_the_contract(data: str) -> None:
    """Nothing that cannot be understood becomes a token."""
    with pytest.raises(PhaseError) as caught:
        COMPLETIONS.delta(data)
    assert caught.value.reason is Reason.BACKEND_BROKE_CONTRACT


@pytest.mark.parametrize("word", ["abort", "error"])
def test_an_answer_that_was_given_up_is_no_answer(word: str) -> None:
    """Else half an answer would be sold for a whole one."""
    with pytest.raises(PhaseError) as caught:
        COMPLETIONS.delta(_choice(text="", finish_reason=word))
    assert caught.value.reason is Reason.BACKEND_FAILED


def test_an_error_in_the_midst_of_a_stream() -> None:
    """Status 200 went out long before; the code in the error decides."""
    error = {"message": PROMPT, "type": "InternalServerError", "code": 500}
    with pytest.raises(PhaseError) as caught:
        COMPLETIONS.delta(_event(error=error))
    assert (caught.value.reason, caught.value.retryable) == (Reason.BACKEND_FAILED, True)
    assert PROMPT not in caught.value.message
    with pytest.raises(PhaseError) as caught:
        COMPLETIONS.delta(_event(error={"message": "no", "code": 400}))
    assert (caught.value.reason, caught.value.retryable) == (Reason.INVALID_REQUEST, False)


# --- refusals ---

STATUSES = [
    (400, Reason.INVALID_REQUEST, False),
    (401, Reason.BACKEND_FAILED, True),
    (404, Reason.BACKEND_FAILED, True),
    (408, Reason.BACKEND_STALLED, True),
    (413, Reason.REQUEST_TOO_LARGE, False),
    (422, Reason.INVALID_REQUEST, False),
    (429, Reason.QUEUE_FULL, True),
    (500, Reason.BACKEND_FAILED, True),
    (502, Reason.BACKEND_FAILED, True),
    (503, Reason.QUEUE_FULL, True),
    (504, Reason.BACKEND_STALLED, True),
    (302, Reason.BACKEND_FAILED, True),
]


@pytest.mark.parametrize(("status", "reason", "retryable"), STATUSES)
def test_statuses(status: int, reason: Reason, retryable: bool) -> None:
    """The caller's fault ends the request, the rest is tried elsewhere. The prompt is not quoted."""
    body = {"error": {"message": PROMPT, "type": "BadRequestError", "param": PROMPT, "code": status}}
    failure = refusal(status, body)
    assert (failure.reason, failure.retryable) == (reason, retryable)
    assert str(status) in failure.message
    assert "BadRequestError" in failure.message
    assert PROMPT not in failure.message


TOO_LONG = [
    "max_tokens=4000 cannot be greater than max_model_len=1024.",  # vLLM 0.32
    "This model's maximum context length is 1024 tokens. However, you requested 2000 tokens",  # OpenAI
    "The input (40960 tokens) is longer than the model's context length (40960 tokens).",  # SGLang
    "the request exceeds the available context size (exceed_context_size_error)",  # llama.cpp
]


@pytest.mark.parametrize("message", TOO_LONG)
@pytest.mark.parametrize("status", [400, 500])
def test_a_prompt_that_does_not_fit_is_the_callers(message: str, status: int) -> None:
    """Also where the engine says 500: it is in good health, and no other attempt would fare better."""
    failure = refusal(status, {"error": {"message": message}})
    assert (failure.reason, failure.retryable) == (Reason.REQUEST_TOO_LARGE, False)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"error": {"code": 429, "message": "x"}}, Reason.QUEUE_FULL),
        ({"error": {"code": "weird"}}, Reason.BACKEND_FAILED),
        ({"error": "it broke"}, Reason.BACKEND_FAILED),
        ({"object": "error", "code": 400, "message": "x"}, Reason.INVALID_REQUEST),
    ],
)
def test_errors_with_status_200(body: dict[str, Any], reason: Reason) -> None:
    """Several servers send them so; an answer without one is none."""
    failure = error_body(body)
    assert failure is not None
    assert failure.reason is reason
    assert error_body({"choices": []}) is None
    assert error_body({"choices": [], "error": None}) is None


@pytest.mark.parametrize("kind", ["x" * 65, "a\nb", "", 7, None, "<script>"])
def test_a_strange_error_type_is_not_quoted(kind: Any) -> None:
    """It goes into logs and to clients."""
    assert "(" not in refusal(400, {"error": {"type": kind}}).message


# --- llama.cpp ---


def test_llama_cpp_in_its_own_words() -> None:
    """Ids both ways, and one last event with the counts."""
    dialect = LlamaCppDialect()
    ask = dialect.ask(_ids())
    assert ask.path == "/completion"
    assert ask.body == {
        "prompt": [5, 6],
        "n_predict": 9,
        "stream": True,
        "return_tokens": True,
        "cache_prompt": True,
    }
    assert dialect.delta('{"content":" a","tokens":[7],"stop":false}') == Delta(" a", (7,))
    last = (
        '{"content":"","tokens":[],"stop":true,"stop_type":"eos","tokens_predicted":3,"tokens_evaluated":2}'
    )
    assert dialect.delta(last) == Delta(finish=FinishReason.STOP, tokens=Tokens(2, 3), is_last=True)
    with pytest.raises(PhaseError):
        dialect.delta('{"content":"","stop":true,"stop_type":"none"}')
