"""Conversations that the server keeps: a turn's body, its run, its answers.  The rows are ``tru_vlm.chats``."""
