// Ask a server about a picture with each client for Node; run by ask_clients.py, which sends this file
// to Node's standard input, so that the packages of the working directory are found.
//
// The environment variable TASK holds a JSON object: url, model, questions, and picture, the path
// of a PNG. Writes a JSON line for each answer: client, way, question, answer.

import { readFileSync } from "node:fs";
import OpenAI from "openai";
import { generateText, streamText } from "ai";
import { createOpenAI } from "@ai-sdk/openai";

const task = JSON.parse(process.env.TASK);
const dataUri = `data:image/png;base64,${readFileSync(task.picture).toString("base64")}`;
const settings = { baseURL: `${task.url}/v1`, apiKey: "none" };
const openai = new OpenAI({ ...settings, maxRetries: 0 });
const provider = createOpenAI(settings);
const MAX_TOKENS = 32;

function chat(question) {
  const content = [
    { type: "text", text: question },
    { type: "image_url", image_url: { url: dataUri } },
  ];
  const messages = [{ role: "user", content }];
  return { model: task.model, messages, max_tokens: MAX_TOKENS, temperature: 0 };
}

function response(question) {
  const content = [
    { type: "input_text", text: question },
    { type: "input_image", image_url: dataUri, detail: "auto" },
  ];
  return { model: task.model, input: [{ role: "user", content }], max_output_tokens: MAX_TOKENS };
}

function prompt(model, question) {
  const content = [
    { type: "text", text: question },
    { type: "image", image: dataUri },
  ];
  const messages = [{ role: "user", content }];
  return { model, messages, maxOutputTokens: MAX_TOKENS, maxRetries: 0 };
}

async function joined(stream, text) {
  let answer = "";
  for await (const part of stream) answer += text(part) ?? "";
  return answer;
}

async function streamed(model, question) {
  let failure;
  const onError = ({ error }) => { failure = error; };
  const answer = await joined(streamText({ ...prompt(model, question), onError }).textStream, (part) => part);
  if (failure) throw failure;
  return answer;
}

const clients = {
  "openai, chat": {
    plain: async (q) => (await openai.chat.completions.create(chat(q))).choices[0].message.content,
    streamed: async (q) => joined(
      await openai.chat.completions.create({ ...chat(q), stream: true }),
      (chunk) => chunk.choices[0]?.delta?.content,
    ),
  },
  "openai, responses": {
    plain: async (q) => (await openai.responses.create(response(q))).output_text,
    streamed: async (q) => joined(
      await openai.responses.create({ ...response(q), stream: true }),
      (event) => (event.type === "response.output_text.delta" ? event.delta : ""),
    ),
  },
  "ai, chat": {
    plain: async (q) => (await generateText(prompt(provider.chat(task.model), q))).text,
    streamed: async (q) => streamed(provider.chat(task.model), q),
  },
  "ai, responses": {
    plain: async (q) => (await generateText(prompt(provider.responses(task.model), q))).text,
    streamed: async (q) => streamed(provider.responses(task.model), q),
  },
};

for (const [client, ways] of Object.entries(clients)) {
  for (const [way, ask] of Object.entries(ways)) {
    for (const question of task.questions) {
      let answer;
      try {
        answer = await ask(question);
      } catch (error) {
        answer = String(error);
      }
      console.log(JSON.stringify({ client: `Node ${client}`, way, question, answer }));
    }
  }
}
