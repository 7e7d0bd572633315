// Byte orders that the kernel's interfaces want.
package main

import (
	"encoding/binary"
	"unsafe"
)

// Netlink speaks the machine's own byte order: big-endian in the guest, whatever the host has in a unit test.
var hostOrder = func() binary.ByteOrder {
	probe := uint16(1)
	if *(*byte)(unsafe.Pointer(&probe)) == 1 {
		return binary.LittleEndian
	}
	return binary.BigEndian
}()

// networkOrder is htons, for the protocol numbers that packet(7) wants in network order.
func networkOrder(value uint16) uint16 {
	var bytes [2]byte
	binary.BigEndian.PutUint16(bytes[:], value)
	return hostOrder.Uint16(bytes[:])
}
