"""Services as data: what is rendered is whole, bounded, valid, and inert to whatever a customer types."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from kubernetes.client import ApiClient

from activities.service_templates.manifests import (
    INSTANCE_LABEL,
    MANAGED_BY,
    ORGANIZATION_LABEL,
    InstanceSpec,
    InvalidTemplate,
)
from activities.service_templates.registry import PROBE, RenderedInstance, ServiceTemplateRegistry
from activities.service_templates.values import ClusterProfile
from tests.support.instance_fixture import SMALL, TEMPLATES
from workflows.ports.subscription import Resources
from workflows.rules.errors import ErrorCode, RuleViolation

SERVICES = sorted(TEMPLATES.services)
ROOT = Path(__file__).resolve().parents[2]

NASTY = (
    '"}\n---\napiVersion: v1\nkind: Pod',
    "'; DROP TABLE instances; --",
    "{{ platform }}{% for x in [] %}",
    "a: b\n  c: d # !!python/object/apply:os.system",
    "&anchor *alias | > - ? : \t",
    "\u2028\u0085\ufeff\x7f\U0001f600 ünïcode",
    "$(curl evil) `id` ${HOME}",
    "yes",
    "null",
    "0x1F",
)


def spec_of(slug: str, **changes: Any) -> InstanceSpec:
    spec = InstanceSpec(
        installation_id="00000000-0000-4000-8000-000000000000",
        instance_id="ins_abc",
        organization_id="org_x",
        service_slug=slug,
        version=TEMPLATES.service(slug).version,
        hostname="shop.example.com",
        namespace="berth-ins-abc",
        resources=SMALL,
    )
    return replace(spec, **changes)


def render(slug: str, **changes: Any) -> RenderedInstance:
    return TEMPLATES.render(spec_of(slug, **changes))


def pods(rendered: RenderedInstance) -> Iterator[tuple[str, dict[str, Any]]]:
    for manifest in rendered.of_kind("Deployment", "StatefulSet", "Job"):
        yield manifest["metadata"]["name"], manifest["spec"]["template"]
    for manifest in rendered.of_kind("CronJob"):
        yield manifest["metadata"]["name"], manifest["spec"]["jobTemplate"]["spec"]["template"]
    yield "probe", rendered.probe["spec"]["template"]


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


def leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for part in value.values():
            yield from leaves(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from leaves(part)
    else:
        yield value


@pytest.mark.parametrize("slug", SERVICES)
def test_every_instance_has_its_walls(slug: str) -> None:
    rendered = render(slug)
    kinds = {manifest["kind"] for manifest in rendered.objects}
    assert kinds >= {
        "Namespace", "ResourceQuota", "LimitRange", "NetworkPolicy", "ServiceAccount", "PersistentVolumeClaim",
        "StatefulSet", "Deployment", "Service", "Ingress", "CronJob",
    }  # fmt: skip
    (namespace,) = rendered.of_kind("Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    (account,) = rendered.of_kind("ServiceAccount")
    assert account["automountServiceAccountToken"] is False
    deny = next(
        manifest for manifest in rendered.of_kind("NetworkPolicy") if manifest["metadata"]["name"] == "default-deny"
    )
    assert (deny["spec"]["podSelector"], deny["spec"]["policyTypes"]) == ({}, ["Ingress", "Egress"])
    assert deny["spec"]["ingress"] == [{"from": [{"podSelector": {}}]}]
    reached = [rule["to"] for rule in deny["spec"]["egress"]]
    dns = {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}
    assert reached == [[{"podSelector": {}}], [{"namespaceSelector": dns}]]
    (ingress,) = rendered.of_kind("Ingress")
    assert ingress["spec"]["tls"] == [{"hosts": ["shop.example.com"], "secretName": "app-tls"}]
    assert ingress["metadata"]["annotations"]["cert-manager.io/cluster-issuer"] == "letsencrypt"


@pytest.mark.parametrize("slug", SERVICES)
def test_everything_is_labelled_named_and_in_its_namespace(slug: str) -> None:
    rendered = render(slug)
    labels = {MANAGED_BY: "berth", INSTANCE_LABEL: "ins_abc", ORGANIZATION_LABEL: "org_x"}
    for manifest in rendered.objects:
        assert manifest["metadata"]["labels"].items() >= labels.items(), manifest["kind"]
        if manifest["kind"] != "Namespace":
            assert manifest["metadata"]["namespace"] == "berth-ins-abc"
    for name, pod in pods(rendered):
        assert pod["metadata"]["labels"].items() >= (labels | {"app.kubernetes.io/name": name}).items()


@pytest.mark.parametrize("slug", SERVICES)
def test_the_official_models_accept_every_object(slug: str) -> None:
    """The client's models carry the official schema: unknown fields, wrong types and missing ones are refused."""
    client = ApiClient()
    for manifest in render(slug).objects:
        group, _, version = manifest["apiVersion"].rpartition("/")
        model = f"{version.capitalize()}{manifest['kind']}"
        parsed = client.deserialize(json.dumps(manifest), model, "application/json")
        assert client.sanitize_for_serialization(parsed) == manifest, (
            f"{group} {manifest['kind']} {manifest['metadata']['name']}"
        )


@pytest.mark.parametrize("slug", SERVICES)
def test_every_container_is_restricted_bounded_and_pinned(slug: str) -> None:
    for name, pod in pods(render(slug)):
        assert pod["spec"]["automountServiceAccountToken"] is False
        security = pod["spec"]["securityContext"]
        assert security["runAsNonRoot"] is True
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in containers(pod):
            assert container["securityContext"]["allowPrivilegeEscalation"] is False, name
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert set(container["resources"]) == {"requests", "limits"}
            assert re.search(r":[\w.-]*\d+\.\d+[\w.-]*$", container["image"]), container["image"]


@pytest.mark.parametrize("slug", SERVICES)
def test_what_is_asked_for_fits_the_quota(slug: str) -> None:
    for plan in TEMPLATES.service(slug).definition["plans"]:
        rendered = render(slug, resources=Resources(**plan["resources"]))
        (quota,) = rendered.of_kind("ResourceQuota")
        hard = quota["spec"]["hard"]
        claims = [
            manifest["spec"]["resources"]["requests"]["storage"]
            for manifest in rendered.of_kind("PersistentVolumeClaim")
        ]
        assert sum(int(size.removesuffix("Gi")) for size in claims) == plan["resources"]["storage_gib"]
        assert hard["requests.storage"] == f"{plan['resources']['storage_gib']}Gi"
        for bound in ("requests", "limits"):
            for resource, unit in (("cpu", "m"), ("memory", "Mi")):
                used = 0
                for _, pod in pods(rendered):
                    own = [int(c["resources"][bound][resource].removesuffix(unit)) for c in pod["spec"]["containers"]]
                    first = [
                        int(c["resources"][bound][resource].removesuffix(unit))
                        for c in pod["spec"].get("initContainers", [])
                    ]
                    used += max([sum(own), *first])
                assert used <= int(hard[f"{bound}.{resource}"].removesuffix(unit)), (bound, resource)


@pytest.mark.scenario("P25")
@pytest.mark.parametrize("slug", SERVICES)
def test_the_quota_has_room_for_the_solver_of_a_challenge(slug: str) -> None:
    """With cert-manager's defaults: limits of 100m and 64Mi, requests of 10m and 64Mi, a Service of type NodePort."""
    rendered = render(slug)
    (quota,) = rendered.of_kind("ResourceQuota")
    hard = quota["spec"]["hard"]
    assert (hard["services.nodeports"], hard["services.loadbalancers"]) == ("1", "0")
    for bound, cpu, memory in (("limits", 100, 64), ("requests", 10, 64)):
        for resource, unit, requested in (("cpu", "m", cpu), ("memory", "Mi", memory)):
            used = sum(
                int(container["resources"][bound][resource].removesuffix(unit))
                for _, pod in pods(rendered)
                for container in pod["spec"]["containers"]
            )
            assert used + requested <= int(hard[f"{bound}.{resource}"].removesuffix(unit)), (bound, resource)


@pytest.mark.parametrize("slug", SERVICES)
def test_no_secret_is_in_a_manifest_and_every_one_that_is_named_is_declared(slug: str) -> None:
    rendered = render(slug)
    assert not rendered.of_kind("Secret")
    declared = {(name, key) for name, keys in rendered.service.secrets.items() for key in keys}
    used = set()
    for _, pod in pods(rendered):
        for container in containers(pod):
            for variable in container.get("env", []):
                reference = variable.get("valueFrom", {}).get("secretKeyRef")
                if reference:
                    used.add((reference["name"], reference["key"]))
    handed_over = rendered.service.credentials
    assert handed_over is not None
    assert used | {(handed_over.secret, handed_over.username), (handed_over.secret, handed_over.password)} == declared


@pytest.mark.parametrize("slug", SERVICES)
def test_plans_have_whole_prices_in_every_currency(slug: str) -> None:
    for plan in TEMPLATES.service(slug).definition["plans"]:
        assert plan["interval"] in ("month", "year")
        assert {price["currency"] for price in plan["prices"]} == {"USD", "EUR", "IDR"}
        assert all(isinstance(price["amount_minor"], int) and price["amount_minor"] > 0 for price in plan["prices"])


def test_the_first_service_is_what_its_documentation_asks_for() -> None:
    rendered = render("n8n", parameters={"timezone": "Asia/Jakarta"})
    (app,) = rendered.of_kind("Deployment")
    assert app["spec"]["strategy"] == {"type": "Recreate"}
    assert app["spec"]["replicas"] == 1
    (container,) = app["spec"]["template"]["spec"]["containers"]
    environment = {v["name"]: v.get("value", v.get("valueFrom")) for v in container["env"]}
    assert environment["WEBHOOK_URL"] == environment["N8N_EDITOR_BASE_URL"] == "https://shop.example.com/"
    assert (environment["N8N_HOST"], environment["N8N_PROXY_HOPS"]) == ("shop.example.com", "1")
    assert environment["N8N_ENCRYPTION_KEY"] == {"secretKeyRef": {"name": "app", "key": "encryption-key"}}
    assert environment["GENERIC_TIMEZONE"] == "Asia/Jakarta"
    assert container["ports"] == [{"name": "http", "containerPort": 5678, "protocol": "TCP"}]
    assert container["livenessProbe"]["httpGet"]["path"] == container["startupProbe"]["httpGet"]["path"] == "/healthz"
    assert container["readinessProbe"]["httpGet"]["path"] == "/healthz/readiness"
    assert container["volumeMounts"] == [{"name": "data", "mountPath": "/home/node/.n8n"}]
    security = app["spec"]["template"]["spec"]["securityContext"]
    assert (security["runAsUser"], security["fsGroup"]) == (1000, 1000)
    # It comes up owned: n8n takes its owner from these when it starts (since 2.17.0).
    assert environment["N8N_INSTANCE_OWNER_MANAGED_BY_ENV"] == "true"
    assert environment["N8N_INSTANCE_OWNER_EMAIL"] == {"secretKeyRef": {"name": "app", "key": "owner-email"}}
    hashed = {"secretKeyRef": {"name": "app", "key": "owner-password-hash"}}
    assert environment["N8N_INSTANCE_OWNER_PASSWORD_HASH"] == hashed


def test_the_second_service_cannot_be_claimed_by_a_stranger() -> None:
    rendered = render("wordpress")
    assert ("Job", "install") in rendered.workloads
    (app,) = rendered.of_kind("Deployment")
    first = app["spec"]["template"]["spec"]["initContainers"][0]
    assert first["name"] == "wait-for-install"
    assert "FROM app.wp_users" in first["command"][-1]
    (container,) = app["spec"]["template"]["spec"]["containers"]
    salts = [v["name"] for v in container["env"] if v["name"].endswith(("_KEY", "_SALT"))]
    assert len(salts) == 8
    assert container["ports"][0]["containerPort"] == 8000
    assert app["spec"]["template"]["spec"]["securityContext"]["runAsUser"] == 33


@pytest.mark.scenario("S6")
@pytest.mark.parametrize("text", NASTY)
def test_what_a_customer_types_stays_one_string(text: str) -> None:
    plain, hostile = render("wordpress", parameters={"site_title": "PLAIN"}), None
    hostile = render("wordpress", parameters={"site_title": text})
    expected = json.loads(json.dumps(plain.objects).replace('"PLAIN"', json.dumps(text)))
    assert list(hostile.objects) == expected


@pytest.mark.scenario("S6")
@given(text=st.text(min_size=1, max_size=120).filter(lambda text: "\x00" not in text))
@settings(max_examples=20, deadline=None)
def test_whatever_a_customer_types_stays_one_string(text: str) -> None:
    rendered = render("wordpress", parameters={"site_title": text})
    assert len(rendered.objects) == len(render("wordpress").objects)
    assert text in set(leaves(rendered.objects))


@pytest.mark.scenario("S6")
@pytest.mark.parametrize(
    ("slug", "parameters"),
    [
        ("n8n", {"timezone": "Etc/UTC\nevil: true"}),
        ("n8n", {"timezone": {"a": 1}}),
        ("n8n", {"subdomain": "shop\n"}),
        ("n8n", {"execution_history_days": "7"}),
        ("n8n", {"image": "evil/image:1.0"}),
        ("wordpress", {"site_title": "x" * 121}),
        ("wordpress", {"locale": "en_US; rm -rf /"}),
    ],
)
def test_what_no_field_takes_is_refused(slug: str, parameters: dict[str, Any]) -> None:
    with pytest.raises(RuleViolation) as raised:
        render(slug, parameters=parameters)
    assert raised.value.code is ErrorCode.VALIDATION_ERROR


def test_an_unknown_service_or_version_is_refused() -> None:
    with pytest.raises(RuleViolation):
        TEMPLATES.render(replace(spec_of("n8n"), service_slug="nothing"))
    with pytest.raises(RuleViolation):
        render("n8n", version="0.0.1")


def write_service(folder: Path, manifest: str) -> ServiceTemplateRegistry:
    for path in sorted((ROOT / "templates" / "services" / "n8n").iterdir()):
        target = folder / "tiny" / path.name
        target.parent.mkdir(exist_ok=True)
        if path.name == "service.yaml":
            target.write_text(path.read_text().replace("slug: n8n", "slug: tiny", 1))
    (folder / "tiny" / "10.yaml.j2").write_text(manifest)
    (folder / "_base").mkdir()
    (folder / PROBE).write_text((ROOT / "templates" / "services" / PROBE).read_text())
    return ServiceTemplateRegistry(folder)


@pytest.mark.parametrize(
    "manifest",
    [
        "kind: ConfigMap\nmetadata: {name: x}",
        "apiVersion: v1\nkind: Secret\nmetadata: {name: x}",
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: Not_A_Name}",
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: kube-system}",
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\n---\n" * 2,
        "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRoleBinding\nmetadata: {name: x}",
    ],
)
def test_a_manifest_that_oversteps_is_refused(tmp_path: Path, manifest: str) -> None:
    templates = write_service(tmp_path, manifest)
    with pytest.raises(InvalidTemplate):
        templates.render(replace(spec_of("n8n"), service_slug="tiny"))


def test_adding_an_application_is_adding_a_folder(tmp_path: Path) -> None:
    templates = write_service(
        tmp_path, "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\ndata:\n  host: {{ instance.hostname }}"
    )
    rendered = templates.render(replace(spec_of("n8n"), service_slug="tiny"))
    assert [manifest["data"] for manifest in rendered.objects] == [{"host": "shop.example.com"}]


def test_no_module_names_an_application() -> None:
    named = re.compile("|".join(re.escape(slug) for slug in SERVICES), re.IGNORECASE)
    offenders = [
        str(path.relative_to(ROOT))
        for folder in ("activities", "workflows", "db", "api")
        for path in (ROOT / folder).rglob("*.py")
        if named.search(path.read_text(encoding="utf-8"))
    ]
    assert offenders == []


def test_the_platforms_settings_reach_the_manifests() -> None:
    platform = ClusterProfile(ingress_class="traefik", storage_class="fast")
    rendered = ServiceTemplateRegistry(ROOT / "templates" / "services", platform).render(spec_of("n8n"))
    assert rendered.of_kind("Ingress")[0]["spec"]["ingressClassName"] == "traefik"
    assert {manifest["spec"]["storageClassName"] for manifest in rendered.of_kind("PersistentVolumeClaim")} == {"fast"}


def test_every_service_file_is_plain_data() -> None:
    for slug in SERVICES:
        text = (ROOT / "templates" / "services" / slug / "service.yaml").read_text(encoding="utf-8")
        assert yaml.safe_load(text)["slug"] == slug
