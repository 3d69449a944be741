"""A bot as any team has one: it answers, remembers the conversation, and logs what it said."""

import json
import os
import sys

from openai import OpenAI

client = OpenAI()
openings = sys.argv[1:] or ["my lamp is broken", "where is my parcel?", "i was charged twice", "cancel my order please"]
for opening in openings:
    messages = [{"role": "user", "content": opening}]
    for follow_up in ("and then?", "thank you", None):
        answer = client.chat.completions.create(
            model=os.environ.get("MODEL", "gpt-4o-mini"), messages=messages, temperature=1.0
        )
        said = answer.choices[0].message.content or ""
        messages.append({"role": "assistant", "content": said})
        messages.append({"role": "user", "content": follow_up or ""})
    print(json.dumps({"response": answer.id, "turns": len(messages) // 2, "said": said}), flush=True)
