# Two stages: the first installs, the second has what runs and no more. The legacy builder can build it too.
FROM python:3.13-slim-trixie AS build
# pip from outside, so that the venv needs none. Requirements before code: a change of code installs nothing anew.
RUN python -m venv --without-pip /app/venv
COPY requirements.txt /tmp/
RUN pip --python /app/venv/bin/python install --no-cache-dir --disable-pip-version-check --require-hashes \
    --requirement /tmp/requirements.txt

FROM python:3.13-slim-trixie
LABEL org.opencontainers.image.title="quart_ots" \
      org.opencontainers.image.description="One-time secrets as a JSON API" \
      org.opencontainers.image.source="https://github.com/quart-ots/quart_ots" \
      org.opencontainers.image.licenses="MIT"
ARG VERSION=0.1.0
LABEL org.opencontainers.image.version="${VERSION}"
WORKDIR /app
ENV PATH=/app/venv/bin:$PATH PYTHONPATH=/app PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
# The console script of setup.py; installing the package for it would take an index and setuptools at every build.
# A new volume takes the instance folder's owner and mode. Group 0 is that of the arbitrary user ids of OpenShift.
RUN printf '%s\n' '#!/app/venv/bin/python' 'from quart_ots.cli import main' 'main()' > /usr/local/bin/quart-ots \
    && chmod 755 /usr/local/bin/quart-ots \
    && install --directory --owner 10001 --group 0 --mode 0770 /app/instance
COPY --from=build /app/venv /app/venv
COPY quart_ots /app/quart_ots
RUN python -m compileall -q /app/quart_ots
USER 10001:10001
VOLUME /app/instance
EXPOSE 8080
# Live, not ready: a supervisor that restarts what is unhealthy must not do so because the database is away.
# http.client knows no proxies, whatever http_proxy says.
HEALTHCHECK --interval=10s --timeout=5s --start-period=15s --retries=3 \
    CMD ["python", "-Ic", "from http.client import HTTPConnection; c = HTTPConnection('127.0.0.1', 8080, timeout=4); c.request('GET', '/health/live'); raise SystemExit(c.getresponse().status != 200)"]
CMD ["quart-ots", "serve", "--bind", ":8080"]
