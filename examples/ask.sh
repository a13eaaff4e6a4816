#!/usr/bin/env bash
# One curl per route.  Usage: examples/ask.sh [clip.mp4] [http://127.0.0.1:8000]
set -euo pipefail
clip=${1:-static/samples/two-events.mp4}
base=${2:-http://127.0.0.1:8000}

echo "--- is it there?"
curl -fsS "$base/v1/health"

echo; echo "--- upload a clip and ask"
curl -fsS "$base/v1/inference/upload" -F "video=@$clip" -F 'prompt=What happens in this video?' -F temperature=0

echo; echo "--- the same, streamed as server-sent events"
curl -fsSN "$base/v1/inference/upload" -F "video=@$clip" -F 'prompt=What happens in this video?' -F stream=true

echo; echo "--- as JSON, with the clip as a data URI (an https URL works the same way)"
printf '{"video_url": "data:video/mp4;base64,%s", "prompt": "When does the second event begin?",
  "video_params": {"fps": 2}, "generation_params": {"max_tokens": 64, "temperature": 0}}' "$(base64 <"$clip" | tr -d '\n')" |
  curl -fsS "$base/v1/inference/url" -H 'Content-Type: application/json' --data-binary @-

echo; echo "--- LitServe's route takes both"
curl -fsS "$base/predict" -F "video=@$clip" -F 'prompt=What colour is the object?' -F max_tokens=16

echo; echo "--- which frames would it see, and how many tokens would that take?"
curl -fsS "$base/v1/plan" -F "video=@$clip" -F fps=2 -F max_tokens=64

echo; echo "--- a clip that is too long is fitted into the context instead of being refused"
curl -fsS "$base/v1/inference/upload" -F "video=@$clip" -F 'prompt=What happens in this video?' -F fit=true -F temperature=0

echo; echo "--- what is it made of?"
curl -fsS "$base/v1/health/detailed"
echo
