# Two stages: the first installs, the second has what runs and no more. For the legacy builder too.
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
ENV PATH=/app/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
# A new volume takes this folder's owner and mode.
RUN install --directory --owner 10001 --group 10001 --mode 0700 /app/instance
COPY --from=build /app/venv /app/venv
COPY quart_ots /app/quart_ots
RUN python -m compileall -q /app/quart_ots
USER 10001:10001
VOLUME /app/instance
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=15s --retries=3 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8080/health/ready', timeout=4)"]
CMD ["hypercorn", "--workers", "0", "--worker-class", "uvloop", "--config", "file:quart_ots/server.py", "--bind", "0.0.0.0:8080", "quart_ots:create_app()"]
