"""The way to the API server: by the service account inside a pod, by the kubeconfig elsewhere."""

from kubernetes.aio import config
from kubernetes.aio.client import ApiClient, Configuration


class NoClusterError(Exception):
    """There is no API server to talk to; the message says where one was looked for."""


async def connect() -> ApiClient:
    """A client, to be entered as a context; raises `NoClusterError` where there is nothing to connect to."""
    found = Configuration()
    try:
        config.load_incluster_config(client_configuration=found)  # type: ignore[no-untyped-call]
    except config.ConfigException:
        try:
            await config.load_kube_config(client_configuration=found)  # type: ignore[no-untyped-call]
        except config.ConfigException as error:
            raise NoClusterError(f"neither in a pod nor with a usable kubeconfig: {error}") from None
    return ApiClient(found)
