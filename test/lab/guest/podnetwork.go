// The VM side of the pod network, like the forwarder of a real image (cloud-api-adaptor, pkg/podnetwork/podnode.go): a
// VXLAN device with the MAC and address of the pod in its own namespace, routes without gateway first, then the others,
// then neighbours. The first error of the kernel is final. Like v0.10 and newer; v0.8 and v0.9 keep the subnet route of
// the kernel, and fail when it is added again.
package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
)

const maxTunnelMTU = 1450

// The temporary name of the device: up to Linux 6.1, its name must be unique in the namespace of the caller, even if it is
// created in another one.
const newTunnelName = "vxlan0"

// podLink is the result of a podNetwork, in the order of its creation.
type podLink struct {
	name       string
	tunnel     vxlan
	address    netip.Prefix
	routes     []route
	neighbours []neighbour
}

func (n *podNetwork) setUp(where netns) error {
	link, err := n.link()
	if err != nil {
		return err
	}
	if n.Dedicated {
		console("pod network: dedicated is ignored")
	}
	if n.ExternalNetViaPodVM {
		console("pod network: external-net-via-pod-vm is ignored")
	}
	if err := where.make(); err != nil {
		return err
	}
	if err := link.make(where); err != nil {
		return err
	}
	console("%s has %s on %s, VXLAN %d to %s", where, link.address, link.name, link.tunnel.id, link.tunnel.remote)
	return nil
}

// link checks what the kernel does not check, or reports unclearly.
func (n *podNetwork) link() (podLink, error) {
	if n == nil {
		return podLink{}, errors.New("there is none")
	}
	if n.TunnelType != "vxlan" {
		return podLink{}, fmt.Errorf("tunnel-type %q is not known", n.TunnelType)
	}
	if !n.PodIP.Addr().Is4() || !n.WorkerNodeIP.Addr().Is4() {
		return podLink{}, errors.New("podip and worker-node-ip must be IPv4 prefixes")
	}
	mac, err := net.ParseMAC(n.PodHwAddr)
	if err != nil {
		return podLink{}, fmt.Errorf("pod-hw-addr: %w", err)
	}
	link := podLink{
		name:    n.Interface,
		tunnel:  vxlan{name: newTunnelName, mac: mac, mtu: min(n.MTU, maxTunnelMTU), id: n.VXLANID, remote: n.WorkerNodeIP.Addr(), port: n.VXLANPort},
		address: n.PodIP,
	}
	var indirect []route
	for _, spec := range n.Routes {
		r, err := spec.route(n.Interface)
		if err != nil {
			return podLink{}, err
		}
		if r.gateway.IsValid() {
			indirect = append(indirect, r)
		} else {
			link.routes = append(link.routes, r)
		}
	}
	link.routes = append(link.routes, indirect...)
	for _, spec := range n.Neighbors {
		mac, err := net.ParseMAC(spec.HwAddr)
		if err != nil {
			return podLink{}, fmt.Errorf("neighbor %s: %w", spec.IP, err)
		}
		if !spec.IP.Is4() || spec.Dev != n.Interface || spec.State != "permanent" {
			return podLink{}, fmt.Errorf("neighbor %s on %q, %q: only permanent IPv4 ones of %q are known", spec.IP, spec.Dev, spec.State, n.Interface)
		}
		link.neighbours = append(link.neighbours, neighbour{spec.IP, mac})
	}
	return link, nil
}

var (
	routeProtocols = map[string]byte{
		"": syscall.RTPROT_BOOT, "boot": syscall.RTPROT_BOOT, "dhcp": syscall.RTPROT_DHCP, "kernel": syscall.RTPROT_KERNEL, "static": syscall.RTPROT_STATIC,
	}
	routeScopes = map[string]byte{
		"": syscall.RT_SCOPE_UNIVERSE, "universe": syscall.RT_SCOPE_UNIVERSE, "link": syscall.RT_SCOPE_LINK, "host": syscall.RT_SCOPE_HOST,
	}
)

func (r podRoute) route(dev string) (route, error) {
	result := route{destination: r.Dst, gateway: r.GW.Unmap()}
	if !r.Dst.IsValid() {
		result.destination = everywhere
	}
	// The daemon of upstream sends the default route as ::ffff:0.0.0.0/0. The netlink package of the forwarder treats
	// the address as IPv4 and uses the length unchanged.
	if address, bits := r.Dst.Addr(), r.Dst.Bits(); address.Is4In6() && bits <= 32 {
		result.destination = netip.PrefixFrom(address.Unmap(), bits)
	}
	var known [2]bool
	result.protocol, known[0] = routeProtocols[r.Protocol]
	result.scope, known[1] = routeScopes[r.Scope]
	switch {
	case !result.destination.Addr().Is4() || r.GW.IsValid() && !result.gateway.Is4():
		return route{}, fmt.Errorf("route %s is not of IPv4", result)
	case r.Dev != dev:
		return route{}, fmt.Errorf("route %s: there is no interface %q", result, r.Dev)
	case !known[0] || !known[1]:
		return route{}, fmt.Errorf("route %s: protocol %q or scope %q is not known", result, r.Protocol, r.Scope)
	}
	return result, nil
}

// make creates the device here and moves it there: its outer packets use eth0 of this namespace.
func (l podLink) make(where netns) error {
	namespace, err := os.Open(string(where))
	if err != nil {
		return err
	}
	defer namespace.Close()
	if err := l.tunnel.add(namespace); err != nil {
		return err
	}
	return where.do(func() error {
		link, err := net.InterfaceByName(l.tunnel.name)
		if err != nil {
			return err
		}
		if err := bringUpAs(link, l.name); err != nil {
			return err
		}
		// The forwarder removes the subnet route that the kernel adds for an address: only the listed routes remain.
		if err := addAddress(link, l.address, withoutPrefixRoute); err != nil {
			return err
		}
		for _, r := range l.routes {
			if err := addRoute(link, r); err != nil {
				return err
			}
		}
		for _, n := range l.neighbours {
			if err := addPermanentNeighbour(link, n); err != nil {
				return err
			}
		}
		return nil
	})
}
