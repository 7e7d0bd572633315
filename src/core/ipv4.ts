/** IPv4 addresses and prefixes, as text and as numbers. */
import {isIPv4} from 'node:net';

/** Whether the text is `a.b.c.d/n`. */
export function isPrefix(text: string): boolean {
	const [, address = '', length = ''] = /^([\d.]{7,15})\/(\d{1,2})$/v.exec(text) ?? [];
	return isIPv4(address) && Number(length) <= 32;
}

/** Whether `address` lies in `prefix`, `a.b.c.d/n`. */
export function prefixContains(prefix: string, address: string): boolean {
	const [network = '', length = '32'] = prefix.split('/');
	const size = 2 ** (32 - Number(length));
	return Math.floor(addressNumber(network) / size) === Math.floor(addressNumber(address) / size);
}

/** The prefix with all host bits set to zero, as in routes. */
export function networkOf(prefix: string): string {
	const [address = '', length = '32'] = prefix.split('/');
	const size = 2 ** (32 - Number(length));
	return `${addressText(Math.floor(addressNumber(address) / size) * size)}/${length}`;
}

/** @param netmask such as `255.255.255.0` */
export function prefixLengthOf(netmask: string): number {
	return 32 - Math.log2(2 ** 32 - addressNumber(netmask));
}

function addressNumber(address: string): number {
	return address.split('.').reduce((value, part) => value * 256 + Number(part), 0);
}

function addressText(value: number): string {
	return [24, 16, 8, 0].map(shift => Math.floor(value / 2 ** shift) % 256).join('.');
}
