"""How the areas that serve calls reach each other: they know each other in a circle, cut here."""

from typing import TYPE_CHECKING

from composer_tui.rehearsal.area import Area

if TYPE_CHECKING:
    from composer_tui.rehearsal.apps import Apps
    from composer_tui.rehearsal.calls import Calls
    from composer_tui.rehearsal.containers import Containers
    from composer_tui.rehearsal.functions import Functions
    from composer_tui.rehearsal.logs import Logs
    from composer_tui.rehearsal.volumes import Volumes


class NeighbourlyArea(Area):
    """An area with its neighbours."""

    @property
    def apps(self) -> "Apps":
        from composer_tui.rehearsal.apps import Apps

        return self.plane.area(Apps)

    @property
    def functions(self) -> "Functions":
        from composer_tui.rehearsal.functions import Functions

        return self.plane.area(Functions)

    @property
    def calls(self) -> "Calls":
        from composer_tui.rehearsal.calls import Calls

        return self.plane.area(Calls)

    @property
    def containers(self) -> "Containers":
        from composer_tui.rehearsal.containers import Containers

        return self.plane.area(Containers)

    @property
    def logs(self) -> "Logs":
        from composer_tui.rehearsal.logs import Logs

        return self.plane.area(Logs)

    @property
    def volumes(self) -> "Volumes":
        from composer_tui.rehearsal.volumes import Volumes

        return self.plane.area(Volumes)
