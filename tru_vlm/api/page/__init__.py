"""The web page: its routes, and what turns chats, jobs, videos and answers into HTML."""
