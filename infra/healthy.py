"""Exit 0 where the URL answers with 200 within 5 seconds: the health check of a container that has no curl."""

import sys
import urllib.request

with urllib.request.urlopen(sys.argv[1], timeout=5) as answer:
    sys.exit(answer.status != 200)
