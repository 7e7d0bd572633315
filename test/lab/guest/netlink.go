// The few rtnetlink requests that the guest needs (rtnetlink(7)): link up, address, route, neighbour, VXLAN device.
package main

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
)

// netlinkRequest builds a message: header, the struct of its type, attributes.
type netlinkRequest []byte

func newNetlinkRequest(kind, flags uint16, body []byte) netlinkRequest {
	request := make(netlinkRequest, syscall.NLMSG_HDRLEN, 128)
	hostOrder.PutUint16(request[4:], kind)
	hostOrder.PutUint16(request[6:], flags|syscall.NLM_F_REQUEST|syscall.NLM_F_ACK)
	hostOrder.PutUint32(request[8:], 1) // sequence number: one request per socket
	return append(request, body...)
}

func (r *netlinkRequest) attribute(kind uint16, value []byte) {
	header := make([]byte, 4)
	hostOrder.PutUint16(header, uint16(len(header)+len(value)))
	hostOrder.PutUint16(header[2:], kind)
	*r = append(append(*r, header...), value...)
	for len(*r)%4 != 0 {
		*r = append(*r, 0)
	}
}

// send waits for the kernel's acknowledgement.
func (r netlinkRequest) send() error {
	socket, err := syscall.Socket(syscall.AF_NETLINK, syscall.SOCK_RAW|syscall.SOCK_CLOEXEC, syscall.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer syscall.Close(socket)
	hostOrder.PutUint32(r, uint32(len(r)))
	if err := syscall.Sendto(socket, r, 0, &syscall.SockaddrNetlink{Family: syscall.AF_NETLINK}); err != nil {
		return err
	}
	answer := make([]byte, 4096)
	n, _, err := syscall.Recvfrom(socket, answer, 0)
	if err != nil {
		return err
	}
	if n < syscall.NLMSG_HDRLEN+4 || hostOrder.Uint16(answer[4:]) != syscall.NLMSG_ERROR {
		return fmt.Errorf("netlink answered %d bytes of type %d", n, hostOrder.Uint16(answer[4:]))
	}
	if code := int32(hostOrder.Uint32(answer[syscall.NLMSG_HDRLEN:])); code != 0 {
		return syscall.Errno(-code)
	}
	return nil
}

func bringUp(name string) error {
	link, err := net.InterfaceByName(name)
	if err != nil {
		return err
	}
	return bringUpAs(link, name)
}

// bringUpAs renames a link that is down, and sets it up.
func bringUpAs(link *net.Interface, name string) error {
	body := make([]byte, syscall.SizeofIfInfomsg)
	hostOrder.PutUint32(body[4:], uint32(link.Index))
	hostOrder.PutUint32(body[8:], syscall.IFF_UP)  // flags
	hostOrder.PutUint32(body[12:], syscall.IFF_UP) // the flags to change
	request := newNetlinkRequest(syscall.RTM_NEWLINK, 0, body)
	request.attribute(syscall.IFLA_IFNAME, append([]byte(name), 0))
	if err := request.send(); err != nil {
		return fmt.Errorf("set %s up as %s: %w", link.Name, name, err)
	}
	return nil
}

// withoutPrefixRoute is IFA_F_NOPREFIXROUTE: the address adds no route to its subnet.
const withoutPrefixRoute = 0x200

func addAddress(link *net.Interface, prefix netip.Prefix, flags uint32) error {
	body := make([]byte, syscall.SizeofIfAddrmsg)
	body[0], body[1] = syscall.AF_INET, byte(prefix.Bits())
	hostOrder.PutUint32(body[4:], uint32(link.Index))
	request := newNetlinkRequest(syscall.RTM_NEWADDR, syscall.NLM_F_CREATE|syscall.NLM_F_REPLACE, body)
	request.attribute(syscall.IFA_LOCAL, prefix.Addr().AsSlice())
	request.attribute(syscall.IFA_ADDRESS, prefix.Addr().AsSlice())
	request.attribute(attributeAddressFlags, number(flags))
	if err := request.send(); err != nil {
		return fmt.Errorf("add %s to %s: %w", prefix, link.Name, err)
	}
	return nil
}

type route struct {
	destination netip.Prefix
	gateway     netip.Addr // not valid: directly connected
	protocol    byte
	scope       byte
}

var everywhere = netip.PrefixFrom(netip.IPv4Unspecified(), 0)

func (r route) String() string {
	if !r.gateway.IsValid() {
		return r.destination.String()
	}
	return fmt.Sprintf("%s via %s", r.destination, r.gateway)
}

// addRoute fails if the route exists, like in the forwarder.
func addRoute(link *net.Interface, r route) error {
	body := make([]byte, syscall.SizeofRtMsg)
	body[0], body[1], body[4], body[5] = syscall.AF_INET, byte(r.destination.Bits()), syscall.RT_TABLE_MAIN, r.protocol
	body[6], body[7] = r.scope, syscall.RTN_UNICAST
	request := newNetlinkRequest(syscall.RTM_NEWROUTE, syscall.NLM_F_CREATE|syscall.NLM_F_EXCL, body)
	request.attribute(syscall.RTA_DST, r.destination.Addr().AsSlice())
	if r.gateway.IsValid() {
		request.attribute(syscall.RTA_GATEWAY, r.gateway.AsSlice())
	}
	request.attribute(syscall.RTA_OIF, number(uint32(link.Index)))
	if err := request.send(); err != nil {
		return fmt.Errorf("add the route %s: %w", r, err)
	}
	return nil
}

type neighbour struct {
	address netip.Addr
	mac     net.HardwareAddr
}

// From linux/neighbour.h, if_link.h, if_addr.h: the syscall package does not define them.
const (
	statePermanent         = 0x80
	attributeNeighbour     = 1 // NDA_DST
	attributeNeighbourMAC  = 2 // NDA_LLADDR
	attributeAddressFlags  = 8 // IFA_FLAGS
	attributeLinkInfo      = 18
	attributeLinkKind      = 1
	attributeLinkData      = 2
	attributeNamespace     = 28 // IFLA_NET_NS_FD
	attributeVXLANID       = 1
	attributeVXLANRemote   = 2 // IFLA_VXLAN_GROUP
	attributeVXLANLearning = 7
	attributeVXLANPort     = 15
	sizeofNeighbourMessage = 12
)

func addPermanentNeighbour(link *net.Interface, n neighbour) error {
	body := make([]byte, sizeofNeighbourMessage)
	body[0] = syscall.AF_INET
	hostOrder.PutUint32(body[4:], uint32(link.Index))
	hostOrder.PutUint16(body[8:], statePermanent)
	request := newNetlinkRequest(syscall.RTM_NEWNEIGH, syscall.NLM_F_CREATE|syscall.NLM_F_REPLACE, body)
	request.attribute(attributeNeighbour, n.address.AsSlice())
	request.attribute(attributeNeighbourMAC, n.mac)
	if err := request.send(); err != nil {
		return fmt.Errorf("add the neighbour %s: %w", n.address, err)
	}
	return nil
}

type vxlan struct {
	name   string
	mac    net.HardwareAddr
	mtu    int
	id     int
	remote netip.Addr
	port   int
}

// add creates the device in another namespace; its packets are sent from this one. It leaves nothing if it fails.
func (v vxlan) add(namespace *os.File) error {
	port := make([]byte, 2)
	binary.BigEndian.PutUint16(port, uint16(v.port))
	var data, info netlinkRequest
	data.attribute(attributeVXLANID, number(uint32(v.id)))
	data.attribute(attributeVXLANRemote, v.remote.AsSlice())
	data.attribute(attributeVXLANPort, port)
	data.attribute(attributeVXLANLearning, []byte{0}) // otherwise a host that guesses the id could hijack the traffic of the pod
	info.attribute(attributeLinkKind, []byte("vxlan"))
	info.attribute(attributeLinkData, data)

	request := newNetlinkRequest(syscall.RTM_NEWLINK, syscall.NLM_F_CREATE|syscall.NLM_F_EXCL, make([]byte, syscall.SizeofIfInfomsg))
	request.attribute(syscall.IFLA_IFNAME, append([]byte(v.name), 0))
	request.attribute(syscall.IFLA_ADDRESS, v.mac)
	request.attribute(syscall.IFLA_MTU, number(uint32(v.mtu)))
	request.attribute(attributeNamespace, number(uint32(namespace.Fd())))
	request.attribute(attributeLinkInfo, info)
	if err := request.send(); err != nil {
		return fmt.Errorf("add the VXLAN device %s, id %d, port %d, to %s: %w", v.name, v.id, v.port, v.remote, err)
	}
	return nil
}

// number is a 32-bit value of an attribute.
func number(value uint32) []byte {
	bytes := make([]byte, 4)
	hostOrder.PutUint32(bytes, value)
	return bytes
}
