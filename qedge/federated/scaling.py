"""The one release before training under `scale: private`: means and standard deviations, by which rows are scaled.

It is number 0 of the run's plan, held with all of it before anything is computed. Like a round it is written ahead and flushed, then
charged, and only then used; its record stays, since whoever goes on with the run scales by it again.
"""

from __future__ import annotations

import numpy as np

from qedge.analytics.averages import AveragesEncoder
from qedge.analytics.sums import noised
from qedge.data.federation import Federation
from qedge.data.rows import Affine
from qedge.errors import CheckpointTampered
from qedge.federated.guarantee import Scaling
from qedge.federated.run_folder import RunFolder
from qedge.federated.write_ahead import Release, WriteAhead
from qedge.job import TrainingJob
from qedge.privacy.mechanisms import NoiseSource
from qedge.records import Records

NUMBER = 0


def released_scaling(
    folder: RunFolder, records: Records, federation: Federation, scaling: Scaling, epoch: int, noise: NoiseSource
) -> Affine:
    """Center and spread of every feature, float32 [F] each: those that the run released, or released now.

    federation: with its rows unscaled; epoch: in which this coordinator may charge.

    Raises:
        CheckpointTampered: they were charged and their record is gone or altered. Fenced: another coordinator has the run.
    """
    encoder, clients = _encoder(folder, folder.job(), federation, scaling), len(federation.clients)
    ahead = WriteAhead(folder.path / "scaling.wal", lambda message: records.keys.mac("release", message))
    committed = records.ledger.releases(folder.run)
    release = ahead.read({number: digest for number, digest in committed.items() if number == NUMBER}).get(NUMBER)
    if release is None:
        if NUMBER in committed:
            raise CheckpointTampered(f"run {folder.run}: its scaling was charged but the record is gone or was altered", run=folder.run)
        total = noised(encoder.total(federation.train, range(clients)), scaling.variance, noise)
        release = Release(folder.run, NUMBER, epoch, total)
        ahead.append(release)
    records.ledger.commit(folder.run, NUMBER, release.digest, epoch)
    return encoder.read_off(release.total, scaling.variance, clients)


def _encoder(folder: RunFolder, job: TrainingJob, federation: Federation, scaling: Scaling) -> AveragesEncoder:
    ranges = np.array([(job.data.ranges or {})[name] for name in federation.schema.features], np.float64)
    return AveragesEncoder(ranges[:, 0], ranges[:, 1], scaling.bound, folder.key().derive("scaling"))
