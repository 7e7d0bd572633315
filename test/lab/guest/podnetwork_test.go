package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

const calico = `{
	"podip": "10.1.2.3/32", "pod-hw-addr": "0a:58:0a:01:02:03", "interface": "eth0", "worker-node-ip": "192.168.122.10/24", "tunnel-type": "vxlan",
	"routes": [
		{"dst": "", "gw": "169.254.1.1", "dev": "eth0", "protocol": "boot"},
		{"dst": "169.254.1.1/32", "gw": "", "dev": "eth0", "protocol": "boot", "scope": "link"}
	],
	"neighbors": [{"ip": "169.254.1.1", "hw-addr": "ee:ee:ee:ee:ee:ee", "dev": "eth0", "state": "permanent"}],
	"mtu": 1500, "index": 1, "vxlan-port": 4789, "vxlan-id": 555001, "dedicated": false, "external-net-via-pod-vm": false
}`

func linkOf(t *testing.T, text string) (podLink, error) {
	t.Helper()
	var network podNetwork
	if err := json.Unmarshal([]byte(text), &network); err != nil {
		t.Fatal(err)
	}
	return network.link()
}

func TestRoutesWithoutGatewayComeFirstAndTheMTULeavesRoomForTheTunnel(t *testing.T) {
	link, err := linkOf(t, calico)
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(link.routes); got != "[169.254.1.1/32 0.0.0.0/0 via 169.254.1.1]" {
		t.Error(got)
	}
	if link.routes[0].scope != 253 || link.routes[1].scope != 0 || link.routes[0].protocol != 3 {
		t.Errorf("%#v", link.routes)
	}
	if link.tunnel.mtu != 1450 || link.tunnel.remote.String() != "192.168.122.10" || link.address.String() != "10.1.2.3/32" || len(link.neighbours) != 1 {
		t.Errorf("%+v", link)
	}
	if link, err := linkOf(t, strings.Replace(calico, `"mtu": 1500`, `"mtu": 1350`, 1)); err != nil || link.tunnel.mtu != 1350 {
		t.Errorf("%+v, %v", link, err)
	}
}

func TestTheDefaultRouteComesInThreeSpellings(t *testing.T) {
	for _, dst := range []string{"", "0.0.0.0/0", "::ffff:0.0.0.0/0"} {
		link, err := linkOf(t, strings.Replace(calico, `"dst": ""`, `"dst": "`+dst+`"`, 1))
		if err != nil || link.routes[1].destination != everywhere {
			t.Errorf("%q: %+v, %v", dst, link.routes, err)
		}
	}
}

func TestPodNetworksThatCannotBe(t *testing.T) {
	if _, err := (*podNetwork)(nil).link(); err == nil {
		t.Error("none was accepted")
	}
	for _, change := range [][2]string{
		{`"tunnel-type": "vxlan"`, `"tunnel-type": "geneve"`},
		{`"podip": "10.1.2.3/32"`, `"podip": "fd00::3/64"`},
		{`"worker-node-ip": "192.168.122.10/24"`, `"worker-node-ip": ""`},
		{`"pod-hw-addr": "0a:58:0a:01:02:03"`, `"pod-hw-addr": ""`},
		{`"dev": "eth0", "protocol"`, `"dev": "eth1", "protocol"`},
		{`"protocol": "boot"`, `"protocol": "ospf"`},
		{`"scope": "link"`, `"scope": "global"`},
		{`"dst": "169.254.1.1/32"`, `"dst": "fe80::/64"`},
		{`"dst": "169.254.1.1/32"`, `"dst": "::ffff:169.254.1.1/128"`},
		{`"state": "permanent"`, `"state": "reachable"`},
	} {
		text := strings.Replace(calico, change[0], change[1], 1)
		if text == calico {
			t.Fatalf("%s is not there", change[0])
		}
		if link, err := linkOf(t, text); err == nil {
			t.Errorf("%s was accepted: %+v", change[1], link)
		}
	}
}
