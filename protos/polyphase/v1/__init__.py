"""Wire stubs of Polyphase, generated from the .proto files beside them."""
