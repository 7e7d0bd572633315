/** Where a server listens, as text: `8003`, `0.0.0.0:8003` or `[::1]:8003`. */
import {isIP} from 'node:net';

export interface ListenAddress {
	/** An IP address. */
	readonly host: string;
	readonly port: number;
}

/** Only processes on the same machine can connect. */
const loopback = '127.0.0.1';

/** @returns undefined for invalid text. A port alone is on the loopback address. */
export function parseListenAddress(text: string): ListenAddress | undefined {
	const {host, bracketed, port} =
		/^(?:(?:\[(?<bracketed>[^\[\]]+)\]|(?<host>[^:\[\]]+)):)?(?<port>\d{1,5})$/v.exec(text)?.groups ?? {};
	const number = Number(port);
	const isKnownHost = bracketed === undefined ? host === undefined || isIP(host) === 4 : isIP(bracketed) === 6;
	return isKnownHost && number >= 1 && number <= 65_535
		? Object.freeze({host: bracketed ?? host ?? loopback, port: number})
		: undefined;
}
