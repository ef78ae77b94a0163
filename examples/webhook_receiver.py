#!/usr/bin/env python3
"""A small receiver of webhooks: checks who tells, then prints what happened.

    WEBHOOK_SECRET_FILE=secret webhook_receiver.py [PORT]

The daemon's side: WEBHOOK_URLS=http://127.0.0.1:PORT/ and the same secret. Nothing but Python's own library is used.
"""

import hashlib
import hmac
import http.server
import json
import os
import sys
import time

# How old a message may be: whoever has recorded one cannot send it again tomorrow.
AGE_MAX = 300
BODY_MAX = 65536


def is_genuine(secret, signature, body, now):
    """Whether the holder of the secret has just signed this body: `t=SECONDS,v1=HEX`."""
    parts = dict(part.split("=", 1) for part in signature.split(",") if "=" in part)
    if not parts.get("t", "").isdigit() or abs(now - int(parts["t"])) > AGE_MAX:
        return False
    expected = hmac.new(secret, parts["t"].encode() + b"." + body, hashlib.sha256).hexdigest()
    # Takes the same time wherever the first difference is.
    return hmac.compare_digest(expected, parts.get("v1", ""))


class Receiver(http.server.BaseHTTPRequestHandler):
    secret = b""
    seen = set()

    def do_POST(self):
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(min(length, BODY_MAX))
        signature = self.headers.get("X-Demo-Multiplexer-Signature", "")
        if not is_genuine(self.secret, signature, body, time.time()):
            return self.answer(401)
        event = json.loads(body)
        # An event may come twice; its id is the same then.
        if event["id"] not in self.seen:
            self.seen.add(event["id"])
            about = event["instance"] or {}
            print(event["event"], about.get("id", ""), about.get("golden", ""), flush=True)
        # Any 2xx says that it need not come again.
        self.answer(204)

    def answer(self, status):
        self.send_response(status)
        self.end_headers()

    def log_message(self, *_):
        pass


def main():
    with open(os.environ["WEBHOOK_SECRET_FILE"], "rb") as file:
        Receiver.secret = file.read().strip()
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 9000
    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Receiver)
    print(f"listening on http://127.0.0.1:{server.server_port}/", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
