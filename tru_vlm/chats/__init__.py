"""Chats: conversations about kept videos, as they are stored."""
