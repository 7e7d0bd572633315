// A DHCP client for one interface at boot (RFC 2131, 2132): DISCOVER, OFFER, REQUEST, ACK, with fast retransmission. It
// never renews its lease, because the machine is short-lived.
package main

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"time"
)

const (
	firstRetransmission = 250 * time.Millisecond
	maxRetransmission   = 4 * time.Second
)

type lease struct {
	prefix netip.Prefix
	router netip.Addr
	dns    []netip.Addr
	server netip.Addr
}

// configureByDHCP brings the interface up, gets a lease, and applies it.
func configureByDHCP(name, hostname string, patience time.Duration) (lease, error) {
	if err := bringUp(name); err != nil {
		return lease{}, err
	}
	link, err := net.InterfaceByName(name)
	if err != nil {
		return lease{}, err
	}
	client, err := openDHCP(link, hostname)
	if err != nil {
		return lease{}, fmt.Errorf("open a packet socket on %s: %w", name, err)
	}
	defer client.close()
	l, err := client.lease(time.Now().Add(patience))
	if err != nil {
		return lease{}, fmt.Errorf("DHCP on %s: %w", name, err)
	}
	if err := addAddress(link, l.prefix, 0); err != nil {
		return lease{}, err
	}
	if l.router.IsValid() {
		if err := addRoute(link, route{destination: everywhere, gateway: l.router, protocol: syscall.RTPROT_DHCP}); err != nil {
			return lease{}, err
		}
	}
	if err := announce(link, l.prefix.Addr()); err != nil {
		return lease{}, err
	}
	var resolvConf strings.Builder
	for _, server := range l.dns {
		fmt.Fprintf(&resolvConf, "nameserver %s\n", server)
	}
	return l, os.WriteFile("/etc/resolv.conf", []byte(resolvConf.String()), 0o644)
}

// announce broadcasts the owner of the address by ARP (RFC 2131, 4.4.1; RFC 5227, 2.3): without it, neighbours that
// asked too early repeat their request only after a second.
func announce(link *net.Interface, address netip.Addr) error {
	socket, err := syscall.Socket(syscall.AF_PACKET, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer syscall.Close(socket)
	packet := []byte{0, 1, 8, 0, 6, 4, 0, 1} // Ethernet, IPv4, lengths, a request
	packet = append(append(packet, link.HardwareAddr...), address.AsSlice()...)
	packet = append(append(packet, make([]byte, 6)...), address.AsSlice()...)
	return syscall.Sendto(socket, packet, 0, broadcast(link, syscall.ETH_P_ARP))
}

func broadcast(link *net.Interface, protocol uint16) *syscall.SockaddrLinklayer {
	everyone := [8]uint8{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	return &syscall.SockaddrLinklayer{Protocol: networkOrder(protocol), Ifindex: link.Index, Halen: 6, Addr: everyone}
}

// dhcpClient uses a packet socket, because the interface has no address yet.
type dhcpClient struct {
	link     *net.Interface
	hostname string
	xid      uint32
	socket   int
}

func openDHCP(link *net.Interface, hostname string) (*dhcpClient, error) {
	xid := make([]byte, 4)
	if _, err := rand.Read(xid); err != nil {
		return nil, err
	}
	socket, err := syscall.Socket(syscall.AF_PACKET, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, int(networkOrder(syscall.ETH_P_IP)))
	if err != nil {
		return nil, err
	}
	client := &dhcpClient{link, hostname, binary.BigEndian.Uint32(xid), socket}
	if err := syscall.Bind(socket, &syscall.SockaddrLinklayer{Protocol: networkOrder(syscall.ETH_P_IP), Ifindex: link.Index}); err != nil {
		client.close()
		return nil, err
	}
	return client, nil
}

func (c *dhcpClient) close() { syscall.Close(c.socket) }

// lease repeats the exchange until it succeeds, also after a refusal, or if the server stops answering.
func (c *dhcpClient) lease(deadline time.Time) (lease, error) {
	for {
		offer, err := c.exchange(c.message(dhcpDiscover, nil), deadline, dhcpOffer)
		if err != nil {
			return lease{}, err
		}
		requested := map[byte][]byte{optionRequestedIP: offer.address.AsSlice(), optionServer: offer.options[optionServer]}
		soon := time.Now().Add(2 * maxRetransmission)
		if deadline.Before(soon) {
			soon = deadline
		}
		answer, err := c.exchange(c.message(dhcpRequest, requested), soon, dhcpAck, dhcpNak)
		if err == nil && answer.kind == dhcpAck {
			return answer.lease()
		}
		if time.Now().After(deadline) {
			return lease{}, errNoLease
		}
	}
}

var (
	errNoAnswer = errors.New("no server has answered")
	errNoLease  = errors.New("a server offered an address and did not grant it")
)

// exchange sends the message and retransmits it after 250 ms, then at doubling intervals, until an answer of one of the
// kinds arrives.
func (c *dhcpClient) exchange(message []byte, deadline time.Time, kinds ...byte) (dhcpMessage, error) {
	packet := udpBroadcast(message)
	buffer := make([]byte, 2048)
	for interval := firstRetransmission; time.Now().Before(deadline); {
		if err := syscall.Sendto(c.socket, packet, 0, broadcast(c.link, syscall.ETH_P_IP)); err != nil {
			return dhcpMessage{}, err
		}
		for again := time.Now().Add(interval); ; {
			left := time.Until(again)
			if left <= 0 {
				break
			}
			timeout := syscall.NsecToTimeval(int64(left) + int64(time.Millisecond))
			if err := syscall.SetsockoptTimeval(c.socket, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &timeout); err != nil {
				return dhcpMessage{}, err
			}
			n, _, err := syscall.Recvfrom(c.socket, buffer, 0)
			if err != nil { // EAGAIN: time to send again; EINTR: a signal
				continue
			}
			answer, err := decodeDHCP(udpPayload(buffer[:n]))
			if err == nil && answer.xid == c.xid && bytes.IndexByte(kinds, answer.kind) >= 0 {
				return answer, nil
			}
		}
		if interval *= 2; interval > maxRetransmission {
			interval = maxRetransmission
		}
	}
	return dhcpMessage{}, errNoAnswer
}

// message encodes a message of this client. The client id is derived from the MAC, so that a machine with a known MAC
// gets its old lease at once.
func (c *dhcpClient) message(kind byte, more map[byte][]byte) []byte {
	options := map[byte][]byte{
		optionMessageType: {kind},
		optionClientID:    append([]byte{1}, c.link.HardwareAddr...),
		optionHostname:    []byte(c.hostname),
		optionParameters:  {optionMask, optionRouter, optionDNS},
	}
	for option, value := range more {
		options[option] = value
	}
	return encodeDHCP(c.xid, c.link.HardwareAddr, options)
}
