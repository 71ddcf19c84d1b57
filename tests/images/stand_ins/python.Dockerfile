# In place of python:3.11.13-slim-bookworm: Debian's Python 3.11 under the paths of the official image.
FROM priordial-stand-in-debian:bookworm
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates python3.11-venv python3-pip \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* \
    && ln -s /usr/bin/python3.11 /usr/local/bin/python \
    && ln -s /usr/bin/python3.11 /usr/local/bin/python3 \
    && ln -s /usr/bin/pip3 /usr/local/bin/pip
COPY machine/ /etc/
CMD ["python3"]
LABEL priordial.stand-in=python
