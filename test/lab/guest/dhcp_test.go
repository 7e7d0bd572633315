package main

import (
	"bytes"
	"encoding/binary"
	"net"
	"testing"
)

var testMAC = net.HardwareAddr{0x52, 0x54, 0, 1, 2, 3}

func TestDHCPRequestIsAWholeUDPPacket(t *testing.T) {
	message := encodeDHCP(0xdeadbeef, testMAC, map[byte][]byte{optionMessageType: {dhcpDiscover}, optionHostname: []byte("podvm")})
	if len(message) != 300 || !bytes.Equal(message[28:34], testMAC) || binary.BigEndian.Uint32(message[4:]) != 0xdeadbeef {
		t.Errorf("message %x", message)
	}
	if want := []byte{12, 5, 'p', 'o', 'd', 'v', 'm', 53, 1, 1, 255}; !bytes.Equal(message[240:251], want) {
		t.Errorf("options %x, want %x", message[240:251], want)
	}
	packet := udpBroadcast(message)
	if internetChecksum(packet[:20]) != 0 {
		t.Error("the IP header's checksum is wrong")
	}
	if int(binary.BigEndian.Uint16(packet[2:])) != len(packet) || udpPayload(packet) != nil {
		t.Error("lengths are wrong, or a client took what is for servers")
	}
	binary.BigEndian.PutUint16(packet[22:], 68)
	if !bytes.Equal(udpPayload(packet), message) {
		t.Error("the payload does not come back")
	}
	for length := range packet { // every possible truncation
		decodeDHCP(udpPayload(packet[:length]))
	}
}

func TestLeaseOfAnAnswer(t *testing.T) {
	message := encodeDHCP(7, testMAC, map[byte][]byte{
		optionMessageType: {dhcpAck}, optionMask: {255, 255, 255, 0}, optionRouter: {192, 168, 122, 1}, optionServer: {192, 168, 122, 1},
		optionDNS: {10, 0, 0, 1, 10, 0, 0, 2},
	})
	message[0] = 2
	copy(message[16:], []byte{192, 168, 122, 50})
	answer, err := decodeDHCP(message)
	if err != nil || answer.kind != dhcpAck || answer.xid != 7 {
		t.Fatalf("%+v, %v", answer, err)
	}
	l, err := answer.lease()
	if err != nil || l.prefix.String() != "192.168.122.50/24" || l.router.String() != "192.168.122.1" || len(l.dns) != 2 || l.dns[1].String() != "10.0.0.2" {
		t.Errorf("%+v, %v", l, err)
	}
	delete(answer.options, optionMask)
	if _, err := answer.lease(); err == nil {
		t.Error("a lease without a mask was accepted")
	}
}
