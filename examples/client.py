"""A client for Priordial in twenty lines of httpx."""

import httpx


class Priordial:
    """A client of one running service. `key` is an API key, if the service requires one."""

    def __init__(self, url: str = "http://127.0.0.1:8000", key: str | None = None) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(base_url=url, headers=headers)

    def predict(self, model: str, instances: list, **parameters: object) -> list[dict]:
        """One prediction for each instance; parameters are tau, prior, top_k and version."""
        body = {"instances": instances, "parameters": parameters}
        return self._checked(self._http.post(f"/models/{model}/predict", json=body))["predictions"]

    def put_prior(self, model: str, name: str, prior: dict) -> int:
        """Store a prior for a model; the new revision."""
        return self._checked(self._http.put(f"/models/{model}/priors/{name}", json=prior))[
            "revision"
        ]

    @staticmethod
    def _checked(answer: httpx.Response) -> dict:
        if answer.is_error:
            raise RuntimeError(answer.json()["detail"])
        return answer.json()
