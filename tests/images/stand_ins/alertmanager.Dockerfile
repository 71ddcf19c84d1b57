# In place of prom/alertmanager:v0.28.1: Debian's Alertmanager, with the paths and the user of the official image.
FROM priordial-stand-in-debian:bookworm
RUN apt-get update \
    && apt-get install -y --no-install-recommends prometheus-alertmanager busybox \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* \
    && ln -s /usr/bin/busybox /usr/local/bin/wget \
    && install -d -o 65534 -g 65534 /alertmanager
USER 65534
VOLUME /alertmanager
WORKDIR /alertmanager
EXPOSE 9093
ENTRYPOINT ["/usr/bin/prometheus-alertmanager"]
LABEL priordial.stand-in=alertmanager
