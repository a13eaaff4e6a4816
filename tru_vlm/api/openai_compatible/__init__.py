"""OpenAI's APIs as its clients speak them: chat completions and responses, from body to answer.  It knows no route."""
