// The few rtnetlink requests that it takes to give an interface an address (rtnetlink(7)): link up, address, default route.
package main

import (
	"fmt"
	"net"
	"syscall"
)

// netlinkRequest is a message under construction: header, the type's own struct, attributes.
type netlinkRequest []byte

func newNetlinkRequest(kind, flags uint16, body []byte) netlinkRequest {
	request := make(netlinkRequest, syscall.NLMSG_HDRLEN, 128)
	hostOrder.PutUint16(request[4:], kind)
	hostOrder.PutUint16(request[6:], flags|syscall.NLM_F_REQUEST|syscall.NLM_F_ACK)
	hostOrder.PutUint32(request[8:], 1) // sequence number: one request a socket
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
	body := make([]byte, syscall.SizeofIfInfomsg)
	hostOrder.PutUint32(body[4:], uint32(link.Index))
	hostOrder.PutUint32(body[8:], syscall.IFF_UP)  // flags
	hostOrder.PutUint32(body[12:], syscall.IFF_UP) // which of them to change
	if err := newNetlinkRequest(syscall.RTM_NEWLINK, 0, body).send(); err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	return nil
}

func addAddress(link *net.Interface, prefix net.IPNet) error {
	ones, _ := prefix.Mask.Size()
	body := make([]byte, syscall.SizeofIfAddrmsg)
	body[0], body[1] = syscall.AF_INET, byte(ones)
	hostOrder.PutUint32(body[4:], uint32(link.Index))
	request := newNetlinkRequest(syscall.RTM_NEWADDR, syscall.NLM_F_CREATE|syscall.NLM_F_REPLACE, body)
	request.attribute(syscall.IFA_LOCAL, prefix.IP.To4())
	request.attribute(syscall.IFA_ADDRESS, prefix.IP.To4())
	if err := request.send(); err != nil {
		return fmt.Errorf("add %s to %s: %w", prefix.String(), link.Name, err)
	}
	return nil
}

func addDefaultRoute(link *net.Interface, gateway net.IP) error {
	body := make([]byte, syscall.SizeofRtMsg)
	body[0], body[4], body[5] = syscall.AF_INET, syscall.RT_TABLE_MAIN, syscall.RTPROT_DHCP
	body[6], body[7] = syscall.RT_SCOPE_UNIVERSE, syscall.RTN_UNICAST
	request := newNetlinkRequest(syscall.RTM_NEWROUTE, syscall.NLM_F_CREATE|syscall.NLM_F_REPLACE, body)
	request.attribute(syscall.RTA_GATEWAY, gateway.To4())
	index := make([]byte, 4)
	hostOrder.PutUint32(index, uint32(link.Index))
	request.attribute(syscall.RTA_OIF, index)
	if err := request.send(); err != nil {
		return fmt.Errorf("add the default route by %s: %w", gateway, err)
	}
	return nil
}
