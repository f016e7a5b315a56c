"""What the clouds' own clients make of the environment that tharsis-exec gives them: a line of JSON for each.

    python3 clouds.py CLUSTERS.YAML
"""

import json
import os
import subprocess
import sys


def boto3_environment():
    import boto3

    return boto3.client("sts").get_caller_identity()["Arn"]


def boto3_profile():
    import boto3

    profile = next(name for name in boto3.Session().available_profiles if "/" in name)
    return boto3.Session(profile_name=profile).client("sts").get_caller_identity()["Arn"]


def aws_cli():
    command = "-m awscli sts get-caller-identity --query Arn --output text"
    ran = subprocess.run([sys.executable, *command.split()], capture_output=True, text=True)
    if ran.returncode:
        raise RuntimeError(ran.stderr.strip())
    return ran.stdout.strip()


def azure_identity():
    from azure.identity import WorkloadIdentityCredential

    return WorkloadIdentityCredential().get_token("https://management.azure.com/.default").token


def google_auth():
    from google.auth import identity_pool
    from google.auth.transport.requests import Request

    credentials = identity_pool.Credentials.from_file(
        os.environ["GOOGLE_APPLICATION_CREDENTIALS"],
        scopes=["https://www.googleapis.com/auth/cloud-platform"],
    )
    credentials.refresh(Request())
    return credentials.token


def kubernetes_config():
    # The module reads it when it is imported.
    os.environ["KUBECONFIG"] = f"{sys.argv[1]}:{os.environ['THARSIS_KUBECONFIG']}"
    from kubernetes import client, config

    config.load_kube_config()
    review = client.AuthenticationV1Api().create_self_subject_review(client.V1SelfSubjectReview())
    return review.status.user_info.username


def kubernetes_token():
    from kubernetes import client

    with open(sys.argv[1]) as clusters:
        cluster = json.load(clusters)["clusters"][0]["cluster"]
    configuration = client.Configuration(host=cluster["server"])
    configuration.ssl_ca_cert = cluster["certificate-authority"]
    configuration.api_key["authorization"] = f"Bearer {os.environ['KUBE_TOKEN']}"
    return client.VersionApi(client.ApiClient(configuration)).get_code().git_version


for ask in [
    boto3_environment,
    boto3_profile,
    aws_cli,
    azure_identity,
    google_auth,
    kubernetes_config,
    kubernetes_token,
]:
    try:
        outcome = {"given": ask()}
    except Exception as error:  # what it is, the test has to say
        outcome = {"refused": f"{type(error).__name__}: {error}"}
    print(json.dumps({"client": ask.__name__, **outcome}), flush=True)
