"""Listings in pages that lag, and quotas."""

from __future__ import annotations

import fnmatch
import json
import re
import time
from typing import Any
from xml.etree import ElementTree as ET

from tests.fakes.aws.backend import PAGED, Reply, error
from tests.fakes.aws.orders import Orders


class Listings(Orders):
    """All that is asked and changes nothing."""

    def _is_hidden(self, instance_id: str) -> bool:
        return time.monotonic() < self.visible_at.get(instance_id, 0.0)

    def _describe(self, environ: dict[str, Any], region: str, action: str, sent: dict[str, str]) -> Reply:
        size, token = self.settings["page_size"], int(sent.pop("NextToken", "0"))
        size = min(size, int(sent.pop("MaxResults", "1000")))
        ids = [value for key, value in sent.items() if re.fullmatch(r"(InstanceId|ImageId)\.\d+", key)]
        if action == "DescribeInstances":
            for one in ids:
                if self._is_hidden(one):
                    return error("InvalidInstanceID.NotFound", f"The instance ID '{one}' does not exist", 400)
            for key, value in list(sent.items()):
                if re.fullmatch(r"Filter\.\d+\.Name", key) and value == "client-token":
                    wanted = sent[key.replace("Name", "Value.1")]
                    found = [one for one, of in self.tokens.items() if fnmatch.fnmatchcase(of, wanted)] or [
                        "i-00000000000000000"
                    ]
                    sent[key] = "instance-id"
                    for at, one in enumerate(found, 1):
                        sent[key.replace("Name", f"Value.{at}")] = one
        status, kind, data = self._plain(environ, region, action, sent)
        if status != 200:
            return status, kind, data
        space = re.search(rb'xmlns="([^"]+)"', data)
        if space:
            ET.register_namespace("", space[1].decode())
        tree = ET.fromstring(data)
        name = f"{{{space[1].decode()}}}" if space else ""
        if action == "DescribeRegions":
            rows = tree.find(f"{name}regionInfo")
            for row in list(rows):
                if row.findtext(f"{name}regionName") not in self.settings["regions"]:
                    rows.remove(row)
            return status, kind, ET.tostring(tree)
        rows = tree.find(f"{name}{PAGED[action]}")
        if rows is None:
            return status, kind, data
        if action == "DescribeInstances":
            for reservation in list(rows):
                machines = reservation.find(f"{name}instancesSet")
                for machine in list(machines):
                    if self._is_hidden(machine.findtext(f"{name}instanceId")):
                        machines.remove(machine)
                if not len(machines):
                    rows.remove(reservation)
        if not ids:
            everything = list(rows)
            for row in everything:
                rows.remove(row)
            rows.extend(everything[token : token + size])
            for old in tree.findall(f"{name}nextToken"):
                tree.remove(old)
            if token + size < len(everything):
                ET.SubElement(tree, f"{name}nextToken").text = str(token + size)
        return status, kind, ET.tostring(tree)

    def _quota(self, region: str, action: str, sent: dict[str, Any]) -> Reply:
        fault = self._seen(action, region, {key: str(value) for key, value in sent.items()})
        kind = "application/x-amz-json-1.1"
        if fault:
            return fault["status"], kind, json.dumps({"__type": fault["code"], "message": fault["message"]}).encode()
        code = sent["QuotaCode"]
        value = self.settings["quotas"].get(f"{region}/{code}", self.settings["quotas"].get(code, 1000.0))
        if value is None:
            return 400, kind, json.dumps({"__type": "NoSuchResourceException", "message": "no such quota"}).encode()
        return 200, kind, json.dumps({"Quota": {"QuotaCode": code, "ServiceCode": "ec2", "Value": value}}).encode()
