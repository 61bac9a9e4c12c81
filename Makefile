# `make` lists what there is to type. Everything runs in .venv, which is made from the lock files when it is first needed.
PYTHON ?= python3
SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help install run plan providers ps logs stop reap fetch connect refresh up down deploy test chaos bench check docs lock clean

# What is written behind `make run` goes to flows/terminal/made.py as environment variables, unexpanded: JOB='echo $HOME' and MAX_PRICE='$3'
# mean what they say. Which of them a command takes is known there alone; what make was called with is in MAKEFLAGS.
define unexpanded
override $(1) := $$(value $(1))
export $(1)
endef
$(foreach name,$(.VARIABLES),$(if $(filter command line,$(origin $(name))),$(eval $(call unexpanded,$(name)))))
export UPGRADE ONLY SEEDS PAGE

prepare = @command -v $(PYTHON) >/dev/null || { echo 'prefect-gpu needs Python 3.11 or newer, and there is no $(PYTHON) here: install it, or name yours as in `make PYTHON=python3.12`.' >&2; exit 1; }; $(PYTHON) .ci/bootstrap.py
console = .venv/bin/python -m prefect_gpu.flows.terminal.made

help: ## this list
	@echo 'Rent the right GPU, run one job on it, give it back.'
	@echo
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1|\2/p' $(firstword $(MAKEFILE_LIST)) | while IFS='|' read -r left right; do printf '%-18s%s\n' "$$left" "$$right"; done
	@echo
	@echo 'The same as a command with all options, in any folder: make install'
	@echo 'The server is the one that PREFECT_API_URL or your Prefect profile names, else one of your own, whose data lies in ~/.local/state/prefect-gpu.'

install: ## .venv with the libraries of all providers; then `. .venv/bin/activate` brings the command prefect-gpu to this shell
	$(prepare) requirements-all.lock && echo 'Now type: . .venv/bin/activate      then prefect-gpu works in any folder of this shell.'

run: ## a job, from offers to given back; JOB='nvidia-smi' GPU=H100:8 MAX_PRICE=20 PROVIDERS=aws,local FILES=.. OUTPUTS=..
	$(prepare) requirements.lock && exec $(console) run

plan: ## what a job would get and for how much; buys nothing; GPU=H100 MAX_PRICE=20 PROVIDERS=..
	$(prepare) requirements.lock && exec $(console) plan

providers: ## each provider: credentials, answered in, cheapest H100 and A100
	$(prepare) requirements.lock && exec $(console) providers

connect: ## save the credentials of a provider's account; PROVIDER=aws ACCOUNT=default
	$(prepare) requirements-all.lock && exec $(console) connect

ps: ## who runs what, where, since when, for how much so far; ALL=1 ended runs too
	$(prepare) requirements.lock && exec $(console) ps

logs: ## the steps of a run and its job's output; RUN=its name or id FOLLOW=1 TAIL=20
	$(prepare) requirements.lock && exec $(console) logs

stop: ## cancel a run, and wait until its machine is gone; RUN=its name or id
	$(prepare) requirements.lock && exec $(console) stop

fetch: ## bring the log and the files of a run; RUN=its name or id
	$(prepare) requirements.lock && exec $(console) fetch

reap: ## give back what nobody owns any more, now; DRY_RUN=1 only says what
	$(prepare) requirements.lock && exec $(console) reap

refresh: ## collect the prices anew, now
	$(prepare) requirements.lock && exec $(console) refresh

up: ## start server and worker and keep them: the Prefect UI, schedules, earlier runs
	$(prepare) requirements.lock && exec $(console) up

down: ## stop what `make up` started; FORCE=1 also while jobs run
	$(prepare) requirements.lock && exec $(console) down

deploy: ## work pool, blocks, deployments and automations on the server at PREFECT_API_URL; starts nothing
	$(prepare) requirements.lock && exec $(console) deploy

test: ## the tests; ONLY=expression picks some
	$(prepare) requirements-dev.lock && exec .venv/bin/python -m pytest -q -n auto --dist loadscope $(if $(ONLY),-k '$(ONLY)')

chaos: ## hundreds of runs while everything dies, and build/chaos.json; SEEDS=0-299 PAGE=1 writes docs/chaos.md
	$(prepare) requirements-dev.lock && exec .venv/bin/python -m tests.chaos --seeds '$(or $(SEEDS),0-299)' $(if $(PAGE),--page)

check: ## format, lint, types, shell, pages
	$(prepare) requirements-dev.lock && .venv/bin/ruff format --check . && .venv/bin/ruff check . && .venv/bin/pyright --pythonpath .venv/bin/python
	@if command -v shellcheck >/dev/null; then find providers -name '*.sh' -exec shellcheck -s sh {} +; else echo 'shellcheck is not installed: the .sh files were not checked.'; fi
	@NO_MKDOCS_2_WARNING=1 .venv/bin/python -m mkdocs build --strict

docs: ## write the generated parts of the pages anew, and build them into build/site
	$(prepare) requirements-dev.lock && .venv/bin/python -m tests.docs && NO_MKDOCS_2_WARNING=1 .venv/bin/python -m mkdocs build --strict && echo 'build/site/index.html'

bench: ## the figures and their targets, and build/bench.json; ONLY=catalog runs one group
	$(prepare) requirements-dev.lock && exec .venv/bin/python -m tests.bench $(ONLY)

lock: ## make the lock files from pyproject.toml again; UPGRADE=1 takes newer versions
	$(prepare) requirements-dev.lock && .ci/lock

clean: ## remove .venv and build/; earlier runs stay
	@rm -rf .venv .venv.lock build .pytest_cache .ruff_cache .hypothesis
