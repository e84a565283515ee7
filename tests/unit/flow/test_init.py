import re
from pathlib import Path

import pytest

from kubeworker.components import discover
from kubeworker.core.spec import ClusterFile
from kubeworker.errors import InputError
from kubeworker.flow.field_docs import field_docs
from kubeworker.flow.init import from_guide, template, write
from kubeworker.flow.render import render
from kubeworker.io.cluster_file import load

ROOT = Path(__file__).parents[3]


def test_the_template_is_valid_as_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    write(path, discover())
    cluster = load(path, discover())
    assert [node.name for node in cluster.nodes] == ["k8s-01", "k8s-02"]
    assert cluster.components == {}


def test_its_commented_lines_are_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    write(path, discover())
    as_written = load(path, discover())
    path.write_text(re.sub(r"(?m)^( *)#(?! )", r"\1", path.read_text()))
    uncommented = load(path, discover())
    assert uncommented.model_copy(update={"components": {}}) == as_written
    for component in discover():
        config = component.config.model_validate(uncommented.components[component.name])
        assert config.model_dump() == component.config().model_dump()


def test_every_field_has_a_meaning() -> None:
    names = [field.name for field in field_docs(ClusterFile) if not field.text and not field.model]
    for component in discover():
        names += [f"{component.name}.{field.name}" for field in field_docs(component.config) if not field.text]
    assert names == []
    assert "components" in template(discover())


def test_a_file_that_exists_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        write(path, discover())
    assert path.read_text() == "mine"


GUIDE = ROOT / "tests/guide"


def test_the_guides_file_becomes_a_cluster_yaml_that_renders_at_once(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    remarks = from_guide(
        path, discover(), environment=GUIDE / "environment.sh", kube_nginx_conf=GUIDE / "kube-nginx.conf"
    )
    text = path.read_text()
    for remark in remarks:
        assert remark in " ".join(line.removeprefix("# ") for line in text.splitlines())
    assert f"# From {GUIDE / 'kube-nginx.conf'}." in text
    cluster = load(path, discover())
    assert cluster.profile == "guide"
    assert render(cluster, discover(), tmp_path / "out")


def test_what_the_guides_file_does_not_say_stays_a_comment(tmp_path: Path) -> None:
    plain, guide = tmp_path / "plain.yaml", tmp_path / "guide.yaml"
    write(plain, discover())
    from_guide(guide, discover(), environment=GUIDE / "environment.sh", kube_nginx_conf=None)
    without = [line for line in guide.read_text().splitlines() if line.startswith(" ") and "#" in line]
    assert "  #kubeconfig: ~/.kube/config" in without
    assert {line.strip() for line in plain.read_text().splitlines()} >= {"#listen: 127.0.0.1:8443", "#profile: default"}
    assert "    #listen: 127.0.0.1:8443" in guide.read_text().splitlines()


def test_a_listen_address_of_the_guides_file_is_set(tmp_path: Path) -> None:
    environment = tmp_path / "environment.sh"
    environment.write_text((GUIDE / "environment.sh").read_text().replace("127.0.0.1:8443", "127.0.0.1:9443"))
    from_guide(tmp_path / "cluster.yaml", discover(), environment=environment, kube_nginx_conf=None)
    cluster = load(tmp_path / "cluster.yaml", discover())
    assert cluster.components == {"kube_nginx": {"listen": "127.0.0.1:9443"}}


@pytest.mark.parametrize("where", ["beside", "elsewhere"])
def test_the_ca_beside_the_guides_file_is_named(tmp_path: Path, where: str) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("ca.pem", "ca-key.pem"):
        (folder / name).touch()
    (folder / "environment.sh").write_text((GUIDE / "environment.sh").read_text())
    out = (folder if where == "beside" else tmp_path) / "cluster.yaml"
    from_guide(out, discover(), environment=folder / "environment.sh", kube_nginx_conf=None)
    ca = load(out, discover()).cluster.ca
    assert (ca.cert, ca.key) == (str(folder / "ca.pem"), str(folder / "ca-key.pem"))
    assert (f"{folder}/" in out.read_text().partition("cert:")[2]) == (where == "elsewhere")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "no such file"),
        (b"\xff", "not a UTF-8 text file"),
        (b"NODE_IPS=(1.1.1.1)\r\n", "Windows line ends"),
    ],
)
def test_a_file_that_can_not_be_read_writes_nothing(tmp_path: Path, content: bytes | None, says: str) -> None:
    environment = tmp_path / "environment.sh"
    if content is not None:
        environment.write_bytes(content)
    with pytest.raises(InputError, match=says):
        from_guide(tmp_path / "cluster.yaml", discover(), environment=environment, kube_nginx_conf=None)
    assert not (tmp_path / "cluster.yaml").exists()


def test_a_broken_kube_nginx_conf_is_named_with_its_line(tmp_path: Path) -> None:
    conf = tmp_path / "kube-nginx.conf"
    conf.write_text("stream {\n  upstream {\n")
    with pytest.raises(InputError, match="line 2: the file ends inside a block") as caught:
        from_guide(tmp_path / "cluster.yaml", discover(), environment=GUIDE / "environment.sh", kube_nginx_conf=conf)
    assert caught.value.subject == str(conf)
