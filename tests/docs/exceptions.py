"""The commands of the documentation that no test runs as they are, each with the reason."""

from __future__ import annotations

# Jobs that no later command of the page waits for go to a pool without workers.
IDLE_POOL = "--pool idle"
# Replacements in every block: they shorten commands, or point them to this test's service and images.
SHORT = {"epochs": 2, "warmup_epochs": 1, "weak_augmentation_epochs": 1}
SHORTENED = (
    (
        "--preset digits-cpu",
        "--preset digits-cpu --set epochs=2 --set warmup_epochs=1 --set weak_augmentation_epochs=1",
    ),
    (
        "--preset cifar10-cpu",
        "--preset cifar10-cpu --set epochs=1 --set warmup_epochs=0 --set weak_augmentation_epochs=0",
    ),
    ('"name": "by REST"}', '"name": "by REST", "pool": "idle"}'),
    ('submit("pretrain", preset=', 'submit("pretrain", SHORT, preset='),
    ("epochs: 200\n", "epochs: 2\n"),
    ("epochs: 60\n", "epochs: 2\n"),
    ("batch_size: 128\n", "batch_size: 32\n"),
    ("image_size: 64}", "image_size: 32}"),
    ("metric: {protocol: knn}\n", "metric: {protocol: knn}\npool: idle\n"),
    ("curl -s", "curl --fail-with-body -s"),
)

_STARTED = "the fixture `service` starts the service with the same options on a free port"
_MACHINES = "it needs PostgreSQL, Redis or further machines; tests/acceptance runs this mode"
_PROXY = "tests/api/web/test_nginx.py starts a server with these variables behind nginx"
_DOCKER = "it needs Docker; tests/contracts checks the files with linters"
_BENCHMARKS = "it takes most of an hour; tests/benchmarks runs the measurements at small sizes"
_ENVIRONMENT = "it makes the environment that this test runs in"
_NEXT_PAGE = "docs/getting-started.md runs the same with a file in place of the job"

NOT_RUN = {
    "./run setup": _ENVIRONMENT,
    "./run demo": "tests/acceptance/test_demo.py runs `wcl demo`",
    "./run test": "it would run this test again",
    "./run lint": "tests/contracts runs the import contracts; the rest is no test",
    "./run audit": "it asks a package registry about every requirement",
    ".ci/run": "it would run this test again",
    "./run up": _STARTED,
    "wcl up": _STARTED,
    "wcl up --dataset flowers=/data/flowers": _STARTED,
    "wcl dataset check /data/flowers": "tests/wcl_client/test_dataset_commands.py checks folders",
    "wcl dataset add flowers /data/flowers": "test_dataset_commands.py adds one; this service has it already",
    "wcl classify fit $JOB /data/flowers --output classifier.safetensors": _NEXT_PAGE,
    "wcl classify predict classifier.safetensors /data/flowers --output classes.csv": _NEXT_PAGE,
    "wcl up --workers 2 --dataset flowers=/data/flowers --dataset cifar10": _STARTED,
    "./run bench core": _BENCHMARKS,
    "./run bench methods": _BENCHMARKS,
    "./run bench page": _BENCHMARKS,
    "export WCL_DATABASE_URL=postgresql://wcl:PASSWORD@db.example/wcl": _MACHINES,
    "export WCL_BROKER_URL=redis://redis.example:6379/0": _MACHINES,
    "export WCL_DATA_DIR=/shared/wcl": _MACHINES,
    "python -m jobs move-storage s3://models/wcl": "it needs a bucket; tests/jobs/test_bucket.py moves files into one",
    "export WCL_ALLOWED_HOSTS='[\"wcl.example\"]'": _PROXY,
    "export WCL_TRUSTED_PROXIES='[\"127.0.0.1\"]'": _PROXY,
    "export WCL_ROOT_PATH=/wcl": _PROXY,
    "WCL_HOST=0.0.0.0 WCL_ALLOWED_HOSTS='[\"wcl.example\"]' python -m api": _MACHINES,
    'WCL_WORKER_NAME=node1 WCL_DATASETS=\'{"flowers": "/data/flowers"}\' python -m worker': _MACHINES,
    "sudo chown 999:999 secrets/server.key": "it changes the owner of a file",
    "docker compose run --rm migrate python -m jobs create-key admin --scopes read,submit,admin": _DOCKER,
    "docker compose up": _DOCKER,
    "wcl worker drain node1": "it would end the test's worker; tests/worker/test_orderly_ends.py drains one",
    "wcl sweep watch $SWEEP": "it waits for twelve trainings; tests/wcl_client/test_sweep_commands.py watches a sweep",
    'export WCL_LABEL_LISTS=\'{"imagenet": {"official-1": "/data/1percent.txt"}}\'': "it only sets a variable",
    "pip install ./examples/method_plugin": "the fixture `service` installs the plugin for its server and workers",
    "python docs/screenshot.py --output docs/images/job.png": "test_the_screenshot runs it on a job that has ended",
}
NOT_RUN_PREFIXES = {
    "docker compose -f ": _DOCKER,
    "uv pip compile ": "it asks a package registry for the newest versions",
}
