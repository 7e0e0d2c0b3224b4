"""What the package index shows: the README with absolute links, and the addresses of the project.

The environment variable REPOSITORY has the address of the repository, such as
https://github.com/OWNER/NAME. `release.yml` sets it. Without it, there are no addresses.
"""

import os
import re
from email import message_from_string
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from hatchling.metadata.plugin.interface import MetadataHookInterface

LINK = re.compile(r'(\]\(|src=")(?!https?:)([^)"\s]*)')


class Metadata(MetadataHookInterface):
    def update(self, metadata: dict[str, Any]) -> None:
        root = Path(self.root)
        readme = (root / "README.md").read_text(encoding="utf-8")
        if repository := os.environ.get("REPOSITORY") or stated(root / "PKG-INFO"):
            version = f"v{metadata['version']}"
            readme = LINK.sub(lambda link: link[1] + absolute(link[2], repository, version), readme)
            _, owner, name = urlsplit(repository).path.split("/")
            metadata["urls"] = {
                "Documentation": f"https://{owner}.github.io/{name}/",
                "Repository": repository,
                "Changelog": f"{repository}/blob/{version}/CHANGELOG.md",
                "Issues": f"{repository}/issues",
            }
        metadata["readme"] = {"content-type": "text/markdown", "text": readme}


def stated(path: Path) -> str:
    """The repository's address in a source distribution, or ""."""
    if not path.exists():
        return ""
    urls = message_from_string(path.read_text(encoding="utf-8")).get_all("Project-URL", [])
    return next((url.split(", ")[1] for url in urls if url.startswith("Repository, ")), "")


def absolute(link: str, repository: str, version: str) -> str:
    """The address of a file that a relative link names. Pictures need their bytes, not a page."""
    if link.startswith("#"):
        link = f"README.md{link}"
    kind = "raw" if link.endswith((".png", ".svg")) else "blob"
    return f"{repository}/{kind}/{version}/{link}"
