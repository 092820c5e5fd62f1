"""Images: nothing is built, everything is read."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import modal
import pytest
from grpclib import GRPCError, Status
from hypothesis import given
from hypothesis import strategies as st
from modal_proto import api_pb2

from composer_tui.rehearsal import dockerfile
from composer_tui.rehearsal.dockerfile import Copy, Layer
from composer_tui.rehearsal.images import Images
from tests.rehearsal.planes import RunningPlane, running


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningPlane]:
    with running(tmp_path_factory.mktemp("rehearsal")) as plane:
        yield plane


@pytest.fixture(scope="module")
def app(plane: RunningPlane) -> Iterator[modal.App]:
    with plane.client() as client:
        yield modal.App.lookup("builder", create_if_missing=True, client=client)


def read(*commands: str, context: dict[str, bytes] | None = None, workdir: str = "") -> Layer:
    bases = frozenset({"base"})
    return dockerfile.read(
        ["FROM base", *commands], context or {}, bases, {"PATH": "/bin"}, workdir
    )


def test_what_the_image_methods_install_is_noted(
    plane: RunningPlane, app: modal.App, tmp_path: Path
) -> None:
    (tmp_path / "requirements.txt").write_text(
        "# ours\ntrl==1.16.0 ; python_version > '3.8'  # pinned\n-i https://mirror.invalid\n\npeft\n"
    )
    (tmp_path / "pyproject.toml").write_text('[project]\nname="x"\ndependencies=["Rich>=13"]\n')
    image = (
        modal.Image.debian_slim(python_version="3.11")
        .apt_install("git", "curl")
        .pip_install("torch==2.8.0", "Safe_Tensors[all]>=0.4", pre=True, index_url="https://x/y")
        .uv_pip_install(
            "transformers>=5,<6", "pywin32; sys_platform == 'win32'", extra_options="-U"
        )
        .uv_pip_install(requirements=[str(tmp_path / "requirements.txt")])
        .pip_install_from_requirements(str(tmp_path / "requirements.txt"))
        .pip_install_from_pyproject(str(tmp_path / "pyproject.toml"))
        .run_commands("FLASH=1 python -m pip install 'datasets>=4' && echo pip install nothing")
        .env({"HF_HOME": "/cache/hf", "QUOTED": "a 'b' \"c\" $D", "EMPTY": ""})
        .workdir("/work")
    ).build(app)
    images = plane.plane.area(Images)
    assert plane.get(images.packages, image.object_id) >= {
        "torch",
        "safe-tensors",
        "transformers",
        "trl",
        "peft",
        "rich",
        "datasets",
    }
    assert "pywin32" not in plane.get(images.packages, image.object_id)
    assert plane.get(images.environ, image.object_id) == {
        "HF_HOME": "/cache/hf",
        "QUOTED": "a 'b' \"c\" $D",
        "EMPTY": "",
    }
    assert plane.get(images.workdir, image.object_id) == "/work"
    python = plane.get(images.interpreter, image.object_id)
    done = subprocess.run([python, "-V"], capture_output=True, text=True, check=True)
    assert done.stdout.split()[1] == sys.version.split()[0]


def test_the_same_definition_is_the_same_image(plane: RunningPlane, app: modal.App) -> None:
    first = modal.Image.debian_slim(python_version="3.11").pip_install("a").build(app)
    again = modal.Image.debian_slim(python_version="3.11").pip_install("a").build(app)
    other = modal.Image.debian_slim(python_version="3.11").pip_install("b").build(app)
    assert first.object_id == again.object_id != other.object_id
    with plane.client() as client:
        found = modal.Image.from_id(first.object_id, client=client)
        assert found.build(app).object_id == first.object_id


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (modal.Image.debian_slim(python_version="3.11").pip_install("torch=2.8"), "'torch=2.8'"),
        (modal.Image.debian_slim(python_version="3.11").uv_pip_install("a >< 1"), "'a >< 1'"),
        (modal.Image.from_registry("", add_python="3.11"), "not an image reference"),
        (
            modal.Image.debian_slim(python_version="3.11").dockerfile_commands("RUM true"),
            "unknown instruction: RUM",
        ),
        (
            modal.Image.debian_slim(python_version="3.11").run_commands("pip install 'torch"),
            "quotation",
        ),
    ],
)
def test_what_would_not_build_is_told(app: modal.App, image: modal.Image, words: str) -> None:
    with pytest.raises(modal.exception.ImageBuildError) as caught:
        image.build(app)
    assert words in str(caught.value)


def test_what_was_copied_into_an_image_is_laid_out(
    plane: RunningPlane, app: modal.App, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.json").write_text("{}")
    image = (
        modal.Image.debian_slim(python_version="3.11")
        .add_local_dir(tmp_path / "data", "/opt/data", copy=True)
        .pip_install("rich")
        .add_local_file(tmp_path / "data" / "a.json", "/root/b.json", copy=True)
    ).build(app)
    plane.do(plane.plane.area(Images).unpack(image.object_id, tmp_path / "root"))
    found = {str(path.relative_to(tmp_path)) for path in (tmp_path / "root").rglob("*.json")}
    assert found == {"root/opt/data/a.json", "root/root/b.json"}


def test_an_image_outlives_a_restart_and_ends_when_deleted(tmp_path: Path) -> None:
    with running(tmp_path) as plane, plane.client() as client:
        app = modal.App.lookup("builder", create_if_missing=True, client=client)
        image = modal.Image.debian_slim(python_version="3.11").pip_install("rich").build(app)
    with running(tmp_path) as plane:
        images = plane.plane.area(Images)
        assert "rich" in plane.get(images.packages, image.object_id)
        plane.rpc("ImageDelete", api_pb2.ImageDeleteRequest(image_id=image.object_id))
        with pytest.raises(GRPCError) as caught:
            plane.rpc("ImageFromId", api_pb2.ImageFromIdRequest(image_id=image.object_id))
        assert caught.value.status is Status.NOT_FOUND


def test_environment_lines_are_read_as_docker_reads_them() -> None:
    layer = read(
        "ENV A=1 B='two words' EARLY=$A",
        'ENV C="$A-${B}"',
        "ENV OLD the whole rest",
        "ENV PATH=/opt/bin:$PATH D='$A' E=${NONE:-other} F=${A:+set} \\",
        "    # a comment in between",
        "    G=a\\ b",
    )
    assert layer.problems == ()
    assert layer.environ == {
        "PATH": "/opt/bin:/bin",
        "A": "1",
        "B": "two words",
        "EARLY": "",  # what stood before the line counts
        "C": "1-two words",
        "OLD": "the whole rest",
        "D": "$A",
        "E": "other",
        "F": "set",
        "G": "a b",
    }


def test_working_folders_add_up() -> None:
    assert read("WORKDIR /a", "WORKDIR b", "WORKDIR 'c d'").workdir == "/a/b/c d"
    assert read("WORKDIR below", workdir="/top").workdir == "/top/below"


@pytest.mark.parametrize(
    "line",
    [
        "RUN pip install A.B_c==1",
        "RUN pip3.11 install --no-cache-dir -q a-b-c",
        "RUN /usr/bin/python3 -m pip install --find-links https://x/torch.html a.b.c>=1",
        "RUN cd /tmp && uv pip install --system --torch-backend cu128 'a_b_c[x]~=1.0' || true",
        "RUN --mount=type=cache,target=/c uv pip install --python $(command -v python) a-b-c@1"[
            :-2
        ],
        "RUN pip install a-b-c@git+https://github.com/x/y.git",
        "RUN pip install git+https://github.com/x/y#egg=A_b.c",
        "RUN pip install -r /r.txt",
        "RUN <<EOF\nset -e\npip install a-b-c\nEOF",
    ],
)
def test_an_installation_is_recognised_in_many_spellings(line: str) -> None:
    layer = read("COPY /.r.txt /r.txt", line, context={"/.r.txt": b"a-b-c==1 --hash=sha256:00\n"})
    assert layer.problems == ()
    assert layer.packages == {"a-b-c"}


@pytest.mark.parametrize(
    "line",
    [
        "RUN echo pip install x",
        "RUN pip uninstall -y x",
        "RUN pip install .",
        "RUN pip install -e ./here /there https://x/y-1.0-py3-none-any.whl $MORE",
        "RUN pip install -r /made-by-the-build.txt",
        "RUN pip install -c constraints.txt --index-url https://x",
        "# RUN pip install x",
        "CMD pip install x",
    ],
)
def test_what_names_no_package_is_no_package(line: str) -> None:
    layer = read(line)
    assert (layer.packages, layer.problems) == (frozenset(), ())


@given(lines=st.lists(st.text(max_size=60) | st.sampled_from(["RUN ", "ENV ", "COPY ", "\\"])))
def test_no_line_is_too_strange_to_be_read(lines: list[str]) -> None:
    layer = read(*lines)
    assert all(problem.strip() for problem in layer.problems)


@given(value=st.text(st.characters(blacklist_characters="\n\r", blacklist_categories=["Cc", "Cs"])))
def test_a_value_set_by_image_env_arrives_as_it_was(value: str) -> None:
    import shlex

    lines = f"ENV KEY={shlex.quote(value)}"
    if lines.splitlines() == [lines]:  # Docker ends a line where Python may see none
        assert read(lines).environ["KEY"] == value


def test_copies_go_where_docker_puts_them() -> None:
    assert Copy(("",), "", True).place("root/a.py") == "root/a.py"
    assert Copy(("src",), "opt", False).place("src/a/b.py") == "opt/a/b.py"
    assert Copy(("src/a.py",), "opt/b.py", False).place("src/a.py") == "opt/b.py"
    assert Copy(("src/a.py",), "opt", True).place("src/a.py") == "opt/a.py"
    assert Copy(("src",), "opt", False).place("other/a.py") is None
