/** Sends the parts of an error with a status, so that the daemon can add to them and log them. */
import {AdaptorError} from '../core/errors.ts';
import {at, parseJsonOrNothing, textAt} from '../core/json.ts';
import {present} from '../core/present.ts';
import {toStatus, TtrpcError, type Status} from '../ttrpc/status.ts';

/** Type of the detail of a status that has the parts of an error, as JSON. */
const errorType = 'caa.relay.v1/Error';

/** For a daemon: the status with the parts of the error, so that the daemon can add to them. */
export function toStatusWithParts(error: unknown): Status | undefined {
	const status = toStatus(error);
	if (status === undefined || !(error instanceof AdaptorError) || error instanceof TtrpcError) {
		return status;
	}

	const {what, where, remedy} = error;
	return {...status, details: [{typeUrl: errorType, value: Buffer.from(JSON.stringify({what, where, remedy}))}]};
}

/** The error that a relay process answered with. Relay processes of earlier versions send no parts, only a text. */
export function errorOf(error: TtrpcError): AdaptorError {
	const detail = error.status.details?.find(({typeUrl}) => typeUrl === errorType);
	const parts = detail === undefined ? undefined : parseJsonOrNothing(detail.value);
	const where = Object.entries(Object(at(parts, 'where')) as object).filter(([, value]) =>
		['string', 'number', 'boolean'].includes(typeof value),
	);
	return new AdaptorError({
		code: error.code,
		what: textAt(parts, 'what') ?? error.what,
		where: Object.fromEntries(where),
		...present({remedy: textAt(parts, 'remedy')}),
		cause: error.cause,
	});
}
