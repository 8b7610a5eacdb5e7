# How to run it: docs/container.md.
FROM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
# Static, since there is no C library to link with below.
RUN CGO_ENABLED=0 go build -trimpath -ldflags="-s -w" -o /out/watchword ./cmd/watchword \
	&& mkdir /out/data

FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /out/watchword /watchword
# A new volume takes over the owner of the folder that it is mounted on.
COPY --from=build --chown=65532:65532 --chmod=0700 /out/data /data
USER 65532:65532
WORKDIR /data
VOLUME /data

# To be reached from other containers. Off loopback the server wants
# WATCHWORD_TLS_CERT and WATCHWORD_TLS_KEY, or WATCHWORD_INSECURE=true.
ENV WATCHWORD_GRPC_ADDR=0.0.0.0:50051 \
	WATCHWORD_HTTP_ADDR=0.0.0.0:8080 \
	WATCHWORD_DATASTORE_URI=sqlite:/data/watchword.db
EXPOSE 50051 8080

# Asks WATCHWORD_ADDR (127.0.0.1:50051), with TLS unless WATCHWORD_PLAINTEXT=true.
HEALTHCHECK --interval=10s --timeout=5s --start-period=5s CMD ["/watchword", "healthcheck"]

ENTRYPOINT ["/watchword"]
CMD ["serve"]
