"""An annotator in thirty lines: asks for tasks, ranks the shortest answer first, submits. Only the standard library.

TOKEN=... python docs/example_client.py http://127.0.0.1:7860
"""

import json
import os
import sys
import urllib.request
import uuid

API = (sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:7860") + "/api/v1"


def ask(method, path, body=None):
    headers = {"Authorization": f"Bearer {os.environ['TOKEN']}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(API + path, data, headers, method=method)) as answer:
        return json.load(answer)


print("I am", ask("GET", "/me")["name"])
project = ask("GET", "/projects")["items"][0]["id"]
while task := ask("POST", f"/projects/{project}/next")["task"]:
    lengths = [len(completion["text"]) for completion in task["completions"]]
    ranks = [1 + sum(other < length for other in lengths) for length in lengths]  # equal lengths tie
    # the uuid makes it safe to send this again when the answer was lost
    event = {"uuid": str(uuid.uuid4()), "kind": "submit", "ranks": ranks}
    ask("POST", f"/assignments/{task['assignment_id']}/events", event)
    print("task", task["task_id"], "ranked", ranks)
