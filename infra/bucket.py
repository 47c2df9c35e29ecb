"""Make the bucket that MLFLOW_ARTIFACTS_DESTINATION names, unless it is there. Run once by infra/compose.yaml."""

import os
from urllib.parse import urlsplit

import boto3

bucket = urlsplit(os.environ["MLFLOW_ARTIFACTS_DESTINATION"]).netloc
store = boto3.client("s3", endpoint_url=os.environ["MLFLOW_S3_ENDPOINT_URL"])
if bucket not in [each["Name"] for each in store.list_buckets()["Buckets"]]:
    store.create_bucket(Bucket=bucket)
print(f"bucket {bucket}")
