"""A login with a token for MLflow's server: its setting ``authorization_function`` names `authenticate`."""

from __future__ import annotations

import os

from flask import Response, make_response, request
from werkzeug.datastructures import Authorization


def authenticate() -> Authorization | Response:
    """Whose request it is: the administrator's, if it bears the token of the environment's ``TOKEN``."""
    given = request.authorization
    if given is not None and given.type == "bearer" and given.token == os.environ["TOKEN"]:
        return Authorization("basic", {"username": os.environ["ADMIN"], "password": ""})
    response = make_response("no such token")
    response.status_code = 401
    return response
