#!/usr/bin/env python3
"""A small client of the API: acquires a shop, watches it, lets it go.

    try_it.py [--golden NAME] [--ttl 30m] [--watch] [URL]

URL is the daemon's, http://localhost:8080 by default. A token, where one is
needed, is read from API_TOKEN. Nothing but Python's own library is used.
"""

import argparse
import json
import os
import sys
import time
import urllib.error
import urllib.request
import uuid

TRIES = 5


class Api:
    """The daemon's API."""

    def __init__(self, base, token):
        self.base = base.rstrip("/")
        self.headers = {"Content-Type": "application/json"}
        if token:
            self.headers["Authorization"] = f"Bearer {token}"

    def open(self, method, path, body=None, timeout=30):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.base + path, data, self.headers, method=method)
        return urllib.request.urlopen(request, timeout=timeout)

    def acquire(self, golden, ttl):
        """Gets an instance. The key makes it safe to ask again: the same key is the same instance."""
        body = {"idempotency_key": str(uuid.uuid4())}
        body.update({name: value for name, value in (("golden", golden), ("ttl", ttl)) if value})
        for left in reversed(range(TRIES)):
            try:
                with self.open("POST", "/api/v1/demo/acquire", body) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                # 503: there is no room now, or something the daemon needs is away; 429: asked too often.
                wait = int(error.headers.get("Retry-After", 0))
                if error.code != 503 or not left:
                    sys.exit(f"{error.code}: {json.load(error).get('detail')} (again in {wait} s)")
                time.sleep(wait)
        raise AssertionError("not reached")

    def release(self, id):
        self.open("DELETE", f"/api/v1/demo/{id}").close()

    def status(self, id):
        """Follows an instance: yields an event's name and data until it has ended."""
        with self.open("GET", f"/api/v1/demo/{id}/status") as stream:
            event = None
            for line in stream:
                name, _, value = line.decode().rstrip("\n").partition(": ")
                if name == "event":
                    event = value
                elif name == "data":
                    yield event, json.loads(value)


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("url", nargs="?", default="http://localhost:8080", metavar="URL")
    options.add_argument("--golden")
    options.add_argument("--ttl")
    options.add_argument("--watch", action="store_true", help="until its time is over, or Ctrl-C")
    options = options.parse_args()

    api = Api(options.url, os.environ.get("API_TOKEN"))
    shop = api.acquire(options.golden, options.ttl)
    print(f"{shop['url']} is yours until {shop['expires_at']} ({shop['source']}, {shop['acquire_ms']} ms)")
    print(f"back office: {shop['admin_url']} as {shop['admin_email']}")
    try:
        if options.watch:
            for event, data in api.status(shop["id"]):
                print(event, data.get("state", ""), data.get("seconds_left", ""), flush=True)
    except KeyboardInterrupt:
        pass
    finally:
        api.release(shop["id"])
        print("released")


if __name__ == "__main__":
    main()
