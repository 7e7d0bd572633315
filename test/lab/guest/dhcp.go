// A DHCP client for one interface at boot (RFC 2131, 2132): DISCOVER, OFFER, REQUEST, ACK, with quick retransmission.
// It never renews: the machine does not live that long.
package main

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"time"
)

const (
	dhcpDiscover = 1
	dhcpOffer    = 2
	dhcpRequest  = 3
	dhcpAck      = 5
	dhcpNak      = 6

	optionMask        = 1
	optionRouter      = 3
	optionDNS         = 6
	optionHostname    = 12
	optionRequestedIP = 50
	optionMessageType = 53
	optionServer      = 54
	optionParameters  = 55
	optionClientID    = 61
	optionEnd         = 255

	firstRetransmission = 250 * time.Millisecond
	maxRetransmission   = 4 * time.Second
)

var dhcpMagic = []byte{99, 130, 83, 99}

type dhcpMessage struct {
	xid     uint32
	kind    byte
	address net.IP // yiaddr: the client's, as the server has it
	options map[byte][]byte
}

type lease struct {
	prefix net.IPNet
	router net.IP
	dns    []net.IP
	server net.IP
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
	if err := addAddress(link, l.prefix); err != nil {
		return lease{}, err
	}
	if l.router != nil {
		if err := addDefaultRoute(link, l.router); err != nil {
			return lease{}, err
		}
	}
	if err := announce(link, l.prefix.IP); err != nil {
		return lease{}, err
	}
	var resolvConf strings.Builder
	for _, server := range l.dns {
		fmt.Fprintf(&resolvConf, "nameserver %s\n", server)
	}
	return l, os.WriteFile("/etc/resolv.conf", []byte(resolvConf.String()), 0o644)
}

// announce tells the neighbours who has the address now (RFC 2131, 4.4.1; RFC 5227, 2.3): those who asked before it had one ask again
// only after a second.
func announce(link *net.Interface, address net.IP) error {
	socket, err := syscall.Socket(syscall.AF_PACKET, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer syscall.Close(socket)
	packet := []byte{0, 1, 8, 0, 6, 4, 0, 1} // Ethernet, IPv4, lengths, a request
	packet = append(append(packet, link.HardwareAddr...), address.To4()...)
	packet = append(append(packet, make([]byte, 6)...), address.To4()...)
	return syscall.Sendto(socket, packet, 0, broadcast(link, syscall.ETH_P_ARP))
}

func broadcast(link *net.Interface, protocol uint16) *syscall.SockaddrLinklayer {
	everyone := [8]uint8{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	return &syscall.SockaddrLinklayer{Protocol: networkOrder(protocol), Ifindex: link.Index, Halen: 6, Addr: everyone}
}

// dhcpClient talks through a packet socket, since the interface has no address yet.
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

// lease runs the exchange until it succeeds; a refusal, or a server that falls silent, starts it again.
func (c *dhcpClient) lease(deadline time.Time) (lease, error) {
	for {
		offer, err := c.exchange(c.message(dhcpDiscover, nil), deadline, dhcpOffer)
		if err != nil {
			return lease{}, err
		}
		requested := map[byte][]byte{optionRequestedIP: offer.address, optionServer: offer.options[optionServer]}
		soon := time.Now().Add(2 * maxRetransmission)
		if deadline.Before(soon) {
			soon = deadline
		}
		answer, err := c.exchange(c.message(dhcpRequest, requested), soon, dhcpAck, dhcpNak)
		if err == nil && answer.kind == dhcpAck {
			return answer.lease()
		}
		if time.Now().After(deadline) {
			return lease{}, err
		}
	}
}

var errNoAnswer = errors.New("no server has answered")

// exchange sends the message, again after 250 ms and at doubling intervals, until an answer of one of the kinds comes.
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

// message encodes what this client sends. The client id is the MAC's, so that a machine with a MAC used before gets its lease back at once.
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

func encodeDHCP(xid uint32, mac net.HardwareAddr, options map[byte][]byte) []byte {
	message := make([]byte, 236, 300)
	message[0], message[1], message[2] = 1, 1, byte(len(mac)) // BOOTREQUEST, Ethernet
	binary.BigEndian.PutUint32(message[4:], xid)
	copy(message[28:], mac)
	message = append(message, dhcpMagic...)
	for option := 1; option < optionEnd; option++ {
		if value := options[byte(option)]; len(value) > 0 {
			message = append(append(message, byte(option), byte(len(value))), value...)
		}
	}
	message = append(message, optionEnd)
	for len(message) < 300 { // the least that BOOTP relays pass on (RFC 1542, 2.1)
		message = append(message, 0)
	}
	return message
}

func decodeDHCP(message []byte) (dhcpMessage, error) {
	if len(message) < 240 || message[0] != 2 || !bytes.Equal(message[236:240], dhcpMagic) {
		return dhcpMessage{}, errors.New("not a DHCP answer")
	}
	decoded := dhcpMessage{xid: binary.BigEndian.Uint32(message[4:]), address: append(net.IP(nil), message[16:20]...), options: map[byte][]byte{}}
	for rest := message[240:]; len(rest) > 0 && rest[0] != optionEnd; {
		if rest[0] == 0 { // padding
			rest = rest[1:]
			continue
		}
		if len(rest) < 2 || len(rest) < 2+int(rest[1]) {
			return dhcpMessage{}, errors.New("an option is cut short")
		}
		decoded.options[rest[0]] = append([]byte(nil), rest[2:2+rest[1]]...)
		rest = rest[2+int(rest[1]):]
	}
	if kind := decoded.options[optionMessageType]; len(kind) == 1 {
		decoded.kind = kind[0]
	}
	return decoded, nil
}

func (m dhcpMessage) lease() (lease, error) {
	mask := m.options[optionMask]
	if len(mask) != 4 {
		return lease{}, errors.New("the server gave no subnet mask")
	}
	l := lease{prefix: net.IPNet{IP: m.address, Mask: mask}, server: m.options[optionServer]}
	if router := m.options[optionRouter]; len(router) >= 4 {
		l.router = router[:4]
	}
	for dns := m.options[optionDNS]; len(dns) >= 4; dns = dns[4:] {
		l.dns = append(l.dns, dns[:4])
	}
	return l, nil
}

// udpBroadcast wraps a payload from 0.0.0.0:68 to 255.255.255.255:67; UDP over IPv4 may go without a checksum (RFC 768).
func udpBroadcast(payload []byte) []byte {
	packet := make([]byte, 28, 28+len(payload))
	packet[0] = 0x45
	binary.BigEndian.PutUint16(packet[2:], uint16(28+len(payload)))
	packet[8], packet[9] = 64, syscall.IPPROTO_UDP
	copy(packet[16:20], net.IPv4bcast.To4())
	binary.BigEndian.PutUint16(packet[10:], internetChecksum(packet[:20]))
	binary.BigEndian.PutUint16(packet[20:], 68)
	binary.BigEndian.PutUint16(packet[22:], 67)
	binary.BigEndian.PutUint16(packet[24:], uint16(8+len(payload)))
	return append(packet, payload...)
}

// udpPayload returns what a packet carries to port 68, or nothing. Checksums are not looked at: an offloading virtio leaves them unfinished.
func udpPayload(packet []byte) []byte {
	if len(packet) < 20 || packet[0]>>4 != 4 || packet[9] != syscall.IPPROTO_UDP {
		return nil
	}
	udp := packet[min(4*int(packet[0]&15), len(packet)):]
	if len(udp) < 8 || binary.BigEndian.Uint16(udp[2:]) != 68 {
		return nil
	}
	return udp[8:max(8, min(int(binary.BigEndian.Uint16(udp[4:])), len(udp)))]
}

func internetChecksum(header []byte) uint16 {
	sum := uint32(0)
	for i := 0; i+1 < len(header); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(header[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// networkOrder is htons, for the protocol numbers that packet(7) wants in network order.
func networkOrder(value uint16) uint16 {
	var bytes [2]byte
	binary.BigEndian.PutUint16(bytes[:], value)
	return hostOrder.Uint16(bytes[:])
}

func min(a, b int) int {
	if a < b {
		return a
	}
	return b
}

func max(a, b int) int {
	if a > b {
		return a
	}
	return b
}
