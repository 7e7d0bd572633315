// DHCP messages (RFC 2131, 2132) and their UDP packets. Pure.
package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"syscall"
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
)

var dhcpMagic = []byte{99, 130, 83, 99}

type dhcpMessage struct {
	xid     uint32
	kind    byte
	address netip.Addr // yiaddr: the address of the client according to the server
	options map[byte][]byte
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
	for len(message) < 300 { // the minimum size that BOOTP relays forward (RFC 1542, 2.1)
		message = append(message, 0)
	}
	return message
}

func decodeDHCP(message []byte) (dhcpMessage, error) {
	if len(message) < 240 || message[0] != 2 || !bytes.Equal(message[236:240], dhcpMagic) {
		return dhcpMessage{}, errors.New("not a DHCP answer")
	}
	decoded := dhcpMessage{xid: binary.BigEndian.Uint32(message[4:]), options: map[byte][]byte{}}
	decoded.address, _ = netip.AddrFromSlice(message[16:20])
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
	ones, _ := net.IPMask(mask).Size()
	l := lease{prefix: netip.PrefixFrom(m.address, ones)}
	l.server, _ = netip.AddrFromSlice(m.options[optionServer])
	if router := m.options[optionRouter]; len(router) >= 4 {
		l.router, _ = netip.AddrFromSlice(router[:4])
	}
	for dns := m.options[optionDNS]; len(dns) >= 4; dns = dns[4:] {
		address, _ := netip.AddrFromSlice(dns[:4])
		l.dns = append(l.dns, address)
	}
	return l, nil
}

// udpBroadcast wraps a payload from 0.0.0.0:68 to 255.255.255.255:67. The checksum of UDP over IPv4 is optional (RFC
// 768).
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

// udpPayload returns the payload of a packet to port 68, or nothing. It ignores checksums, because virtio with
// offloading leaves them incomplete.
func udpPayload(packet []byte) []byte {
	if len(packet) < 20 || packet[0]>>4 != 4 || packet[9] != syscall.IPPROTO_UDP {
		return nil
	}
	ipHeader := 4 * int(packet[0]&15)
	if len(packet) < ipHeader+8 {
		return nil
	}
	udp := packet[ipHeader:]
	length := int(binary.BigEndian.Uint16(udp[4:]))
	if binary.BigEndian.Uint16(udp[2:]) != 68 || length < 8 || length > len(udp) {
		return nil
	}
	return udp[8:length]
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
