"""The settings of the users service: ``gunicorn -c users_conf.py users:app``; it registers."""

import os

from wsgigate.registration.gunicorn import registered

bind = f"127.0.0.1:{os.environ.get('PORT', '3001')}"
workers = 2
threads = 4
control_socket_disable = True
globals().update(registered("users", health_check_path="/health", metadata={"team": "accounts"}))
