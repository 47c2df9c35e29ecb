"""What MLflow does when it is first used, done ahead: in a process that those who use it are forked from."""


def build_ahead() -> None:
    """Find the ways to its registry, and no longer look for notebooks. Asks no server, and starts no thread.

    A run of a worker is no notebook, so that it need not look for IPython, Spark and Databricks before each request.
    """
    from mlflow import MlflowClient
    from mlflow.tracking.request_header import registry
    from mlflow.tracking.request_header.databricks_request_header_provider import DatabricksRequestHeaderProvider

    MlflowClient("http://127.0.0.1")._get_registry_client()  # type: ignore[no-untyped-call]
    headers = registry._request_header_provider_registry
    headers._registry = [one for one in headers if not isinstance(one, DatabricksRequestHeaderProvider)]
