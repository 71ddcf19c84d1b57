# In place of prom/prometheus:v3.5.0: Debian's Prometheus, with the paths and the user of the official image.
FROM priordial-stand-in-debian:bookworm
RUN apt-get update \
    && apt-get install -y --no-install-recommends prometheus busybox \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /etc/prometheus \
    && ln -s /usr/bin/busybox /usr/local/bin/wget \
    && install -d -o 65534 -g 65534 /prometheus
USER 65534
VOLUME /prometheus
WORKDIR /prometheus
EXPOSE 9090
ENTRYPOINT ["/usr/bin/prometheus"]
LABEL priordial.stand-in=prometheus
