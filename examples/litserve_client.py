"""The form of client that LitServe generates: one POST of JSON to /predict.

Usage: python examples/litserve_client.py CLIP_OR_URL [QUESTION] [http://127.0.0.1:8000]
"""

import base64
import sys
from pathlib import Path

import requests

where = sys.argv[1]
question = sys.argv[2] if len(sys.argv) > 2 else "What happens in this video?"
base = sys.argv[3] if len(sys.argv) > 3 else "http://127.0.0.1:8000"

if not where.startswith(("http://", "https://")):  # a file here travels inside the JSON
    where = "data:video/mp4;base64," + base64.b64encode(Path(where).read_bytes()).decode()

response = requests.post(
    f"{base}/predict",
    json={"video_url": where, "prompt": question, "generation_params": {"temperature": 0}},
    timeout=600,
)
print(f"Status: {response.status_code}")
body = response.json()
print(body["text"] if response.ok else body["error"]["message"])
