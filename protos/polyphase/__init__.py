"""Wire contract of Polyphase."""
