#!/usr/bin/env bash
# Makes the certificates of the tests of TLS anew, in this folder. The keys protect nothing.
set -euo pipefail
cd "$(dirname "$0")"
readonly DAYS=36500
key() { openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1.key"; }
# signed NAME EXTENSIONS: a certificate of the CA
signed() {
    key "$1"
    openssl req -new -key "$1.key" -subj "/CN=$1" -out "$1.csr"
    openssl x509 -req -in "$1.csr" -CA ca.pem -CAkey ca.key -CAcreateserial -days $DAYS -out "$1.pem" -extfile <(echo "$2")
    rm "$1.csr"
}
key ca
openssl req -x509 -key ca.key -days $DAYS -subj "/CN=modelmeter test CA" -out ca.pem
signed server "subjectAltName=DNS:localhost,IP:127.0.0.1"
signed client "extendedKeyUsage=clientAuth"
key self
openssl req -x509 -key self.key -days $DAYS -subj "/CN=localhost" -addext "subjectAltName=DNS:localhost" -out self.pem
rm -f ca.key ca.srl
