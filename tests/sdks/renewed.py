"""Whether Kubernetes' client goes on with another token, in one process, once tharsis-exec has written the next one.

    python3 renewed.py CLUSTERS.YAML
"""

import os
import sys
import time

# The module reads it when it is imported.
os.environ["KUBECONFIG"] = f"{sys.argv[1]}:{os.environ['THARSIS_KUBECONFIG']}"
from kubernetes import client, config  # noqa: E402


def token_file():
    with open(os.environ["KUBE_TOKEN_FILE"]) as file:
        return file.read()


config.load_kube_config()
api = client.AuthenticationV1Api()


def asked_with():
    api.create_self_subject_review(client.V1SelfSubjectReview())
    return api.api_client.configuration.api_key["authorization"]


first, before = asked_with(), token_file()
while token_file() == before:
    time.sleep(0.02)
print("the same" if asked_with() == first else "the next")
