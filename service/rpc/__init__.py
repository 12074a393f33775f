"""gRPC: the public services Jobs, Files and Models, and Runs for workers. Translates, and decides nothing.

`serve_rpc` is called by the gateway. Each service has its own module; `interceptor` stands before all of them.
"""

from __future__ import annotations

from service.rpc.server import Serving, serve_rpc

__all__ = ["Serving", "serve_rpc"]
