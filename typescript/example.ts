// Ask about a video by its URL, and read an error as the one shape that all routes have.
// npx tsc --noEmit false --outDir build; node build/example.js http://127.0.0.1:8000 https://example.com/clip.mp4
import type { components } from "./src/schema";

type Question = components["schemas"]["UrlRequestBody"];
type Answer = components["schemas"]["Answer"];
type ErrorBody = components["schemas"]["ErrorBody"];

export async function ask(base: string, question: Question): Promise<Answer> {
  const response = await fetch(`${base}/v1/inference/url`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(question),
  });
  if (!response.ok) {
    const { error } = (await response.json()) as ErrorBody;
    throw new Error(`${response.status} ${error.code} (${error.param ?? "-"}): ${error.message}`);
  }
  return (await response.json()) as Answer;
}

declare const process: { argv: string[] };
const [base = "http://127.0.0.1:8000", video_url = ""] = process.argv.slice(2);
const answer = await ask(base, {
  video_url,
  prompt: "What happens in this video?",
  video_params: { fps: 2 },
  generation_params: { max_tokens: 128, temperature: 0 },
});
console.log(answer.text);
for (const moment of answer.moments ?? []) console.log(moment.start_seconds, moment.sentence);
