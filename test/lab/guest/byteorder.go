// Byte orders of kernel interfaces.
package main

import (
	"encoding/binary"
	"unsafe"
)

// Netlink uses the byte order of the machine: big-endian in the guest, that of the host in unit tests.
var hostOrder = func() binary.ByteOrder {
	probe := uint16(1)
	if *(*byte)(unsafe.Pointer(&probe)) == 1 {
		return binary.LittleEndian
	}
	return binary.BigEndian
}()

// networkOrder is htons, for protocol numbers in packet(7).
func networkOrder(value uint16) uint16 {
	var bytes [2]byte
	binary.BigEndian.PutUint16(bytes[:], value)
	return hostOrder.Uint16(bytes[:])
}
