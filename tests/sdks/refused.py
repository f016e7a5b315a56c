"""What Azure's SDK takes without its identity, on a machine that has one of its own: a line of JSON for the SDK as it is, and
one for it as it was before AZURE_TOKEN_CREDENTIALS.

    python3 refused.py
"""

import json
import os
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

from azure.identity import DefaultAzureCredential


class Machine(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        token = {"access_token": "of-the-machine", "expires_on": "4102444800", "token_type": "Bearer", "resource": "any"}
        self.wfile.write(json.dumps(token).encode())

    def log_message(self, *_):
        pass


machine = HTTPServer(("127.0.0.1", 0), Machine)
threading.Thread(target=machine.serve_forever, daemon=True).start()
# As App Service has it.
os.environ["IDENTITY_ENDPOINT"] = f"http://127.0.0.1:{machine.server_port}/msi/token"
os.environ["IDENTITY_HEADER"] = "secret"

for older in [False, True]:
    if older:
        os.environ.pop("AZURE_TOKEN_CREDENTIALS", None)
    try:
        outcome = {"given": DefaultAzureCredential().get_token("https://management.azure.com/.default").token}
    except Exception as error:  # what it is, the test has to say
        outcome = {"refused": f"{type(error).__name__}: {error}"}
    print(json.dumps({"client": "older" if older else "azure_identity", **outcome}), flush=True)
